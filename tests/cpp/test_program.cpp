// Programs: the canonical text, the structure behind it, and what is refused with which message.
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "epiconv/dtype.h"
#include "epiconv/epilogue.h"
#include "epiconv/error.h"

using epiconv::Argument;
using epiconv::DType;
using epiconv::Opcode;
using epiconv::Program;
using epiconv::Statement;

namespace {

int failures = 0;

void check(bool condition, std::string_view test, const std::string& what) {
  if (condition) return;
  std::printf("FAILED %s: %s\n", std::string(test).c_str(), what.c_str());
  ++failures;
}

bool same(const Argument& a, const Argument& b) {
  const bool same_number = std::isnan(a.number)
                               ? std::isnan(b.number)
                               : a.number == b.number && std::signbit(a.number) == std::signbit(b.number);
  return a.kind == b.kind && a.index == b.index && same_number;
}

bool same(const std::vector<Statement>& a, const std::vector<Statement>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i].op != b[i].op || a[i].in_place != b[i].in_place) return false;
    for (int k = 0; k < epiconv::kMaxArguments; ++k) {
      if (!same(a[i].arguments[k], b[i].arguments[k])) return false;
    }
  }
  return true;
}

// Text that is canonical already stands once.
struct Accepted {
  std::string_view text;
  std::string_view canonical{};
};

const std::vector<Accepted> kAccepted{
    // The identity, and what may stand between statements.
    {""},
    {" ;\n; \t\r\n", ""},
    {"v1 = relu(v0)"},
    {"v1=relu(v0);", "v1 = relu(v0)"},
    {"  v1 =\trelu ( v0 ) \r\n\n v2= mish(v1)\n", "v1 = relu(v0); v2 = mish(v1)"},
    {"v1 = minimum(v0, 0.5); v2 = add(v1, b0); v3 = mul(v2, 2.0)"},
    // A value may be used again.
    {"v1 = add(v0, b0); v2 = add(v1, v0); v3 = mul(v2, v0); v4 = add(v3, v0)"},
    {"v1 = group_norm(v0, 8); v2 = add(v1, v0)"},
    {"v1 = relu(v0); v2 = group_norm(v1, 8); v3 = add(v2, v1)"},
    {"v1 = mul(v0, v0)"},

    // Numbers: bool, int and float stay apart, for torch promotes them differently.
    {"v1 = add(v0, 1)"},
    {"v1 = add(v0, 1.)", "v1 = add(v0, 1.0)"},
    {"v1 = add(v0, True); v2 = mul(v1, False)"},
    {"v1 = add(v0, +2)", "v1 = add(v0, 2)"},
    {"v1 = add(v0, -2)"},
    {"v1 = add(v0, -0)", "v1 = add(v0, 0)"},
    {"v1 = add(v0, 007)", "v1 = add(v0, 7)"},
    {"v1 = add(v0, -0.0)"},
    {"v1 = add(v0, .5)", "v1 = add(v0, 0.5)"},
    {"v1 = add(v0, 1e3)", "v1 = add(v0, 1000.0)"},
    {"v1 = add(v0, 1E+30)", "v1 = add(v0, 1e+30)"},
    {"v1 = add(v0, 0.1); v2 = add(v1, 5e-324); v3 = add(v2, 1.7976931348623157e+308)"},
    {"v1 = add(v0, 0.10000000000000000555)", "v1 = add(v0, 0.1)"},
    {"v1 = add(v0, 9007199254740992)"},
    {"v1 = add(v0, inf); v2 = add(v1, -inf); v3 = add(v2, nan)"},
    {"v1 = add(v0, Infinity); v2 = add(v1, -nan)", "v1 = add(v0, inf); v2 = add(v1, nan)"},

    // Defaults and keywords.
    {"v1 = add(v0, b0, alpha=1)", "v1 = add(v0, b0)"},
    {"v1 = add(v0, b0, 1.0)", "v1 = add(v0, b0)"},
    {"v1 = add(v0, b0, 0.5)", "v1 = add(v0, b0, alpha=0.5)"},
    {"v1 = add(v0, b0, alpha=2)"},
    {"v1 = sub(alpha=2, other=v0, input=1.0)", "v1 = sub(1.0, v0, alpha=2)"},
    {"v1 = leaky_relu(v0, 0.01)", "v1 = leaky_relu(v0)"},
    {"v1 = hardtanh(v0, -1, 1)", "v1 = hardtanh(v0)"},
    {"v1 = hardtanh(v0, -1, 2)", "v1 = hardtanh(v0, max_val=2)"},
    {"v1 = softplus(v0, threshold=20.0, beta=3.0)", "v1 = softplus(v0, beta=3.0)"},
    {"v1 = threshold(v0, 0.1, 20.0)"},
    {"v1 = pow(v0, exponent=2)", "v1 = pow(v0, 2)"},
    {"v1 = clamp(v0, None, 1.0)", "v1 = clamp(v0, max=1.0)"},
    {"v1 = clamp(v0, 0.0)", "v1 = clamp(v0, min=0.0)"},
    {"v1 = clamp(v0, 0.0, None)", "v1 = clamp(v0, min=0.0)"},
    {"v1 = clamp(v0, min=b0, max=v0)"},
    {"v1 = gelu(v0, none)", "v1 = gelu(v0)"},
    {"v1 = gelu(v0, approximate=tanh)"},
    {"v1 = cast(v0, bfloat16)", "v1 = cast(v0, dtype=bfloat16)"},
    {"v1 = cast(v0, dtype=float32); v2 = cast(v1, dtype=float16); v3 = cast(v2, dtype=float64)"},
    {"v1 = gt(v0, 0.5); v2 = where(v1, v0, -1.0)"},
    {"v1 = where(b0, v0, b1)"},
    {"v1 = prelu(v0, weight=b0)", "v1 = prelu(v0, b0)"},

    // In-place forms.
    {"v1 = add_(v0, b0); v2 = clamp_(v1, max=1.0)"},
    {"v1 = relu_(input=v0)", "v1 = relu_(v0)"},

    // Statements that the result does not need.
    {"v1 = exp(v0); v2 = relu(v0)", "v1 = relu(v0)"},
    {"v1 = exp(v0); v2 = mish(v1); v3 = relu(v0); v4 = log(v3); v5 = add(v3, v0)",
     "v1 = relu(v0); v2 = add(v1, v0)"},
    {"v1 = group_norm(v0, 4); v2 = relu(v0)", "v1 = relu(v0)"},

    // GroupNorm.
    {"v1 = group_norm(v0, 8)"},
    {"v1 = group_norm(v0, 8, None, None, 0.00001)", "v1 = group_norm(v0, 8)"},
    {"v1 = group_norm(v0, 8, None, b0)", "v1 = group_norm(v0, 8, bias=b0)"},
    {"v1 = group_norm(v0, num_groups=8, weight=b0, bias=b1, eps=0.001)",
     "v1 = group_norm(v0, 8, weight=b0, bias=b1, eps=0.001)"},
    {"v1 = sigmoid(v0); v2 = group_norm(v1, 8, weight=b0); v3 = mul(v2, v2); v4 = exp(b1); v5 = add(v3, v4)"},
    {"v1 = group_norm(v0, 2147483647)"},
};

struct Refused {
  std::string_view text;
  std::vector<std::string_view> words;  // that the message contains
};

const std::vector<Refused> kRefused{
    // The form of a statement.
    {"relu(v0)", {"must assign v1", "'relu'"}},
    {"v2 = relu(v0)", {"must assign v1", "not 'v2'", "v2 = relu(v0)"}},
    {"v0 = relu(v0)", {"must assign v1"}},
    {"v1 = relu(v0); v1 = relu(v0)", {"must assign v2"}},
    {"v1 = relu(v0) v2 = relu(v1)", {"text after ')'"}},
    {"v1 relu(v0)", {"expected '='", "relu(v0)"}},
    {"v1 = (v0)", {"names no operation", "v1 = (v0)"}},
    {"v1 = relu", {"expected '('"}},
    {"v1 = relu v0", {"expected '('", "before 'v0'"}},
    {"v1 = relu(", {"argument is missing"}},
    {"v1 = relu(v0", {"expected ','"}},
    {"v1 = add(v0 b0)", {"expected ','", "before 'b0)'"}},
    {"v1 = add(v0,, b0)", {"argument is missing"}},
    {"v1 = add(v0, b0,)", {"argument is missing"}},
    {"v1 = add(v0, other=)", {"argument is missing"}},
    {"v1 = add(v0, =b0)", {"argument is missing"}},
    {"v1 = add(v0, \"b0\")", {"argument is missing"}},

    // Operations.
    {"v1 = swish(v0)", {"unknown operation 'swish'", "mish"}},
    {"v1 = clampp(v0, 0.0)", {"did you mean clamp?"}},
    {"v1 = _(v0)", {"names no operation"}},
    {"v1 = convolution(v0)",
     {"unknown operation 'convolution'", "the operations are add, sub,", "group_norm"}},

    // Arguments.
    {"v1 = relu(v0, 1.0)", {"too many arguments", "relu(input)"}},
    {"v1 = add(v0)", {"argument 'other'", "is missing", "add(input, other, alpha=1)"}},
    {"v1 = relu()", {"argument 'input'", "is missing"}},
    {"v1 = clamp(min=0.0)", {"argument 'input'", "clamp(input, min=None, max=None)", "is missing"}},
    {"v1 = gelu(v0, exact)",
     {"argument 'approximate'", "gelu(input, approximate=none|tanh)", "one of none|tanh", "'exact'"}},
    {"v1 = gelu(v0, approximate=1)", {"one of none|tanh", "not '1'"}},
    {"v1 = gelu(v0, None)", {"one of none|tanh"}},
    {"v1 = add(v0, b0, beta=1)", {"unknown argument 'beta'", "add(input, other, alpha=1)"}},
    {"v1 = add(v0, other=b0, 2.0)", {"positional argument follows a keyword"}},
    {"v1 = add(v0, b0, input=v0)", {"argument 'input' is given twice"}},
    {"v1 = add(input=v0, input=v0)", {"argument 'input' is given twice"}},
    {"v1 = relu(0.5)", {"argument 'input' of relu(input)", "a value (v0) or an operand (b0)", "not '0.5'"}},
    {"v1 = relu(None)", {"a value (v0) or an operand (b0)", "not 'None'"}},
    {"v1 = add(v0, None)", {"a value (v0), an operand (b0) or a number", "not 'None'"}},
    {"v1 = add(v0, bias)", {"a value (v0), an operand (b0)", "not 'bias'"}},
    {"v1 = add(v0, b0, alpha=b1)", {"argument 'alpha'", "is a number", "not 'b1'"}},
    {"v1 = pow(v0, v0)", {"argument 'exponent'", "is a number"}},
    {"v1 = pow(v0)", {"argument 'exponent'", "is missing"}},
    {"v1 = add(v0, 1.2.3)", {"not '1.2.3'"}},
    {"v1 = add(v0, +-1)", {"not '+-1'"}},
    {"v1 = add(v0, 0x10)", {"not '0x10'"}},
    {"v1 = add(v0, 1e999)", {"not '1e999'"}},
    {"v1 = add(v0, 9007199254740993)", {"9007199254740993", "2**53"}},
    {"v1 = add(v0, -99999999999999999999)", {"2**53"}},
    {"v1 = prelu(v0, 0.25)", {"argument 'weight'", "operand (b0) of shape (K,)", "not '0.25'"}},
    {"v1 = exp(v0); v2 = prelu(v0, v1)", {"operand (b0) of shape (K,)", "not 'v1'"}},
    {"v1 = cast(v0)", {"argument 'dtype'", "is missing"}},
    {"v1 = cast(v0, 16)", {"argument 'dtype'", "float32, float16, bfloat16 or float64"}},
    {"v1 = cast(v0, int8)", {"float32, float16, bfloat16 or float64", "not 'int8'"}},
    {"v1 = cast(v0, half)", {"unknown dtype 'half'", "float16"}},
    {"v1 = clamp(v0)", {"clamp needs min, max or both"}},
    {"v1 = clamp(v0, None, None)", {"clamp needs min, max or both"}},
    {"v1 = add(1.0, 2.0)", {"computes a constant", "write the number"}},
    {"v1 = add_(b0, v0)", {"in-place", "add_(b0, v0)", "must have a value as its first argument"}},
    {"v1 = add_(1.0, v0)", {"in-place"}},

    // Values and operands.
    {"v1 = add(v0, v1)", {"v1 is used before it is computed"}},
    {"v1 = add(v0, v7); v2 = relu(v1)", {"v7 is used before"}},
    {"v1 = relu(b0)", {"not computed from the conv output v0"}},
    {"v1 = relu(v0); v2 = exp(b0)", {"not computed from the conv output v0"}},
    {"v1 = add(v0, b12)", {"operand b12", "at most 12"}},
    {"v1 = add(v0, b1)", {"operand b0 is not used"}},
    {"v1 = add(v0, b0); v2 = add(v1, b2)", {"operand b1 is not used"}},
    {"v1 = add(v0, b0); v2 = relu(v0)", {"operand b0 is not used by the result"}},
    {"v1 = add(v0, b0); v2 = add(v0, b1)", {"operand b0 is not used by the result"}},
    {"v1 = prelu(v0, b0); v2 = add(v1, b0)", {"operand b0", "(K,)", "b.view(-1, 1, 1)"}},

    // GroupNorm.
    {"v1 = group_norm(v0)", {"argument 'num_groups'", "is missing"}},
    {"v1 = group_norm(v0, 0)", {"argument 'num_groups'", "a positive integer", "not '0'"}},
    {"v1 = group_norm(v0, -8)", {"a positive integer"}},
    {"v1 = group_norm(v0, 8.0)", {"a positive integer", "not '8.0'"}},
    {"v1 = group_norm(v0, True)", {"a positive integer"}},
    {"v1 = group_norm(v0, 2147483648)", {"a positive integer"}},
    {"v1 = group_norm(v0, b0)", {"a positive integer"}},
    {"v1 = group_norm(v0, 8, 1.0)", {"argument 'weight'", "(K,) or None", "not '1.0'"}},
    {"v1 = group_norm(v0, 8, bias=v0)", {"argument 'bias'", "(K,) or None"}},
    {"v1 = group_norm(v0, 8, eps=None)", {"argument 'eps'", "a number"}},
    {"v1 = group_norm(v0, 8); v2 = group_norm(v1, 4)", {"at most one group_norm", "v1"}},
    {"v1 = exp(b0); v2 = group_norm(v1, 8); v3 = add(v0, v2)",
     {"group_norm", "not computed from the conv output"}},
};

void test_accepted(const Accepted& expected) {
  const std::string_view canonical =
      expected.canonical.data() == nullptr ? expected.text : expected.canonical;
  const std::string test = epiconv::concat("'", expected.text, "'");
  try {
    const Program program = Program::parse(expected.text);
    check(program.text() == canonical, test, epiconv::concat("prints as '", program.text(), "'"));
    const Program again = Program::parse(program.text());
    check(again == program && again.text() == program.text(), test, "its text does not parse back to it");
    check(same(again.statements(), program.statements()), test, "its statements are not those of its text");
  } catch (const epiconv::InvalidArgument& error) {
    check(false, test, error.what());
  }
}

// Runs `misuse` and looks for the words in the message that it must throw.
void expect_refusal(const std::string& test, const std::vector<std::string_view>& words,
                    const std::function<void()>& misuse) {
  try {
    misuse();
    check(false, test, "was accepted");
  } catch (const epiconv::InvalidArgument& error) {
    const std::string_view message = error.what();
    for (const std::string_view word : words) {
      check(message.find(word) != std::string_view::npos, test,
            epiconv::concat("\"", word, "\" is not in: ", message));
    }
  }
}

void test_refused(const Refused& expected) {
  expect_refusal(epiconv::concat("'", expected.text, "'"), expected.words,
                 [&] { Program::parse(expected.text); });
}

void test_structure() {
  const Program program = Program::parse(
      "v1 = prelu_(v0, b2); v2 = add(v1, b0); v3 = group_norm(v2, 4, weight=b1, eps=0.5); v4 = gelu(v3, "
      "tanh); v5 = "
      "clamp(v4, None, True); v6 = cast(v5, bfloat16)");
  const std::vector<Statement>& statements = program.statements();
  check(statements.size() == 6, "structure", "number of statements");
  check(program.num_operands() == 3, "structure", "number of operands");
  check(!program.operand_is_channel(0) && program.operand_is_channel(1) && program.operand_is_channel(2),
        "structure", "b1 and b2 are channel operands, b0 is not");
  check(program.group_norm_statement() == 2, "structure", "group_norm_statement");
  check(statements[0].op == Opcode::kPRelu && statements[0].in_place && !statements[1].in_place, "structure",
        "in-place form");

  using Kind = Argument::Kind;
  check(same(statements[0].arguments[0], {Kind::kValue, 0, 0.0}), "structure", "a value");
  check(same(statements[0].arguments[1], {Kind::kOperand, 2, 0.0}), "structure", "an operand");
  check(same(statements[1].arguments[2], {Kind::kFloat, 0, 1.0}), "structure", "a default number");
  check(same(statements[2].arguments[1], {Kind::kInt, 0, 4.0}), "structure", "an integer");
  check(same(statements[2].arguments[3], {}), "structure", "an operand left out");
  check(same(statements[3].arguments[1], {Kind::kChoice, 1, 0.0}), "structure", "a choice");
  check(same(statements[4].arguments[1], {}), "structure", "None");
  check(same(statements[4].arguments[2], {Kind::kBool, 0, 1.0}), "structure", "a bool");
  check(same(statements[5].arguments[1], {Kind::kDType, static_cast<int>(DType::kBFloat16), 0.0}),
        "structure", "a dtype");

  check(Program() == Program::parse(""), "structure", "the default program is the identity");
  check(Program().num_operands() == 0 && Program().group_norm_statement() == -1, "structure", "the identity");
  check(!(Program::parse("v1 = add(v0, 1)") == Program::parse("v1 = add(v0, 1.0)")), "structure",
        "an int and a float make different programs");
}

std::string chain(int length) {
  std::string text;
  for (int i = 0; i < length; ++i) text += epiconv::concat("v", i + 1, " = exp(v", i, ");");
  return text;
}

void test_limits() {
  const auto statements = [](const std::string& text) {
    return static_cast<int>(Program::parse(text).statements().size());
  };
  check(statements(chain(epiconv::kMaxStatements)) == epiconv::kMaxStatements, "limits",
        "a program of full length");
  expect_refusal("a program too long", {"49 operations", "at most 48"},
                 [] { Program::parse(chain(epiconv::kMaxStatements + 1)); });
  // Statements that are dropped do not count.
  check(statements(chain(epiconv::kMaxStatements + 1) + "v50 = relu(v1)") == 2, "limits",
        "unused statements count");

  std::string operands;
  for (int i = 0; i < epiconv::kMaxOperands; ++i) {
    operands += epiconv::concat("v", i + 1, " = add(v", i, ", b", i, ");");
  }
  check(Program::parse(operands).num_operands() == epiconv::kMaxOperands, "limits", "all operands");
}

void test_live_values() {
  // v1, v2, v3 and v0 are needed together; a fourth value beside v0 is one too many.
  const std::string three = "v1 = exp(v0); v2 = relu(v0); v3 = mish(v0);";
  check(
      Program::parse(three + "v4 = add(v1, v2); v5 = add(v4, v3); v6 = add(v5, v0)").statements().size() == 6,
      "live values", "four are allowed");
  const std::string four = three + "v4 = tanh(v0);";
  // v4 takes the place of v0, which nothing needs any more.
  check(
      Program::parse(four + "v5 = add(v1, v2); v6 = add(v3, v4); v7 = add(v5, v6)").statements().size() == 7,
      "live values", "a value that is no longer needed does not count");
  expect_refusal(
      "five live values", {"too many live values", "v0, v1, v2, v3, v4", "at most 4", "statement v5"}, [&] {
        Program::parse(four + "v5 = add(v1, v2); v6 = add(v3, v4); v7 = add(v5, v6); v8 = add(v7, v0)");
      });
}

void test_operation_table() {
  for (int i = 0; i < epiconv::kNumOperations; ++i) {
    const auto op = static_cast<Opcode>(i);
    const std::string name(epiconv::operation_info(op).name);
    check(epiconv::find_operation(name) == op, name, "is listed twice or cannot be found");
  }
}

}  // namespace

int main() {
  for (const Accepted& expected : kAccepted) test_accepted(expected);
  for (const Refused& expected : kRefused) test_refused(expected);
  test_structure();
  test_limits();
  test_live_values();
  test_operation_table();
  return failures == 0 ? 0 : 1;
}
