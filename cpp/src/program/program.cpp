// Parses, checks and prints epilogue programs.
#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>

#include "epiconv/epilogue.h"
#include "epiconv/error.h"

namespace epiconv {
namespace {

using Kind = Argument::Kind;

// Doubles hold every integer up to here.
constexpr std::int64_t kMaxExactInteger = std::int64_t{1} << 53;

std::string signature(const OperationInfo& info) {
  std::string text = concat(info.name, "(");
  for (int i = 0; i < info.num_arguments(); ++i) {
    const ArgumentInfo& argument = info.arguments[i];
    text += concat(i ? ", " : "", argument.name);
    if (!argument.has_default) continue;
    if (argument.kind == ArgumentKind::kOptional || argument.kind == ArgumentKind::kOptionalChannel) {
      text += "=None";
    } else if (argument.kind == ArgumentKind::kChoice) {
      text += concat("=", argument.choices);
    } else {
      text += concat("=", argument.default_value);
    }
  }
  return text + ")";
}

int choice_index(std::string_view choices, std::string_view word) {
  int index = 0;
  while (true) {
    const std::size_t bar = choices.find('|');
    if (choices.substr(0, bar) == word) return index;
    if (bar == std::string_view::npos) return -1;
    choices.remove_prefix(bar + 1);
    ++index;
  }
}

std::string_view choice_word(std::string_view choices, int index) {
  for (; index > 0; --index) choices.remove_prefix(choices.find('|') + 1);
  return choices.substr(0, choices.find('|'));
}

// A cursor over one statement's text.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text), rest_(text) {}

  bool take(char expected) {
    skip_space();
    if (rest_.empty() || rest_.front() != expected) return false;
    rest_.remove_prefix(1);
    return true;
  }

  void expect(char expected) {
    require(take(expected), "expected '", std::string(1, expected), "' before '", rest_, "' in statement '",
            text_, "'");
  }

  // An identifier, or what may stand in a number; empty at anything else.
  std::string_view word() {
    skip_space();
    std::size_t length = 0;
    while (length < rest_.size() &&
           (std::isalnum(static_cast<unsigned char>(rest_[length])) ||
            std::string_view("_.+-").find(rest_[length]) != std::string_view::npos)) {
      ++length;
    }
    const std::string_view found = rest_.substr(0, length);
    rest_.remove_prefix(length);
    return found;
  }

  bool at_end() {
    skip_space();
    return rest_.empty();
  }

 private:
  void skip_space() {
    while (!rest_.empty() && std::isspace(static_cast<unsigned char>(rest_.front()))) rest_.remove_prefix(1);
  }

  std::string_view text_;
  std::string_view rest_;
};

// "v12" -> 12 for prefix 'v'; -1 for anything else.
int numbered(std::string_view word, char prefix) {
  if (word.size() < 2 || word.front() != prefix) return -1;
  int index = -1;
  const auto [end, error] = std::from_chars(word.data() + 1, word.data() + word.size(), index);
  return error == std::errc() && end == word.data() + word.size() ? index : -1;
}

bool parse_number(std::string_view word, Argument& argument) {
  if (word == "True" || word == "False") {
    argument = {Kind::kBool, 0, word == "True" ? 1.0 : 0.0};
    return true;
  }
  std::string_view digits = word;
  if (word.starts_with('+') && !word.starts_with("+-")) digits.remove_prefix(1);
  double number = 0.0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (error != std::errc() || end != digits.data() + digits.size()) return false;
  const bool is_integer = digits.find_first_not_of("-0123456789") == std::string_view::npos;
  if (is_integer) {
    std::int64_t integer = 0;
    const auto status = std::from_chars(digits.data(), end, integer).ec;
    require(status == std::errc() && std::abs(integer) <= kMaxExactInteger, "integer ", word,
            " is beyond 2**53; write it as a float, ", word, ".0");
    number = static_cast<double>(integer);  // -0 becomes 0, as in Python
  }
  argument = {is_integer ? Kind::kInt : Kind::kFloat, 0, number};
  return true;
}

constexpr std::string_view kProgramDTypes = "float32, float16, bfloat16 or float64";

[[noreturn]] void refuse(std::string_view word, const ArgumentInfo& place, const OperationInfo& info,
                         std::string_view allowed) {
  throw InvalidArgument(
      concat("argument '", place.name, "' of ", signature(info), " is ", allowed, ", not '", word, "'"));
}

Argument parse_argument(std::string_view word, const ArgumentInfo& place, const OperationInfo& info,
                        int num_values) {
  if (const int value = numbered(word, 'v'); value >= 0) {
    require(value < num_values, "v", value, " is used before it is computed");
    return {Kind::kValue, value, 0.0};
  }
  if (const int operand = numbered(word, 'b'); operand >= 0) {
    require(operand < kMaxOperands, "operand b", operand, ": a program takes at most ", kMaxOperands,
            " operands");
    return {Kind::kOperand, operand, 0.0};
  }
  Argument argument;
  if (word == "None" || parse_number(word, argument)) return argument;
  if (place.kind == ArgumentKind::kChoice) {
    const int choice = choice_index(place.choices, word);
    if (choice < 0) refuse(word, place, info, concat("one of ", place.choices));
    return {Kind::kChoice, choice, 0.0};
  }
  if (place.kind == ArgumentKind::kDType) {
    const DType dtype = parse_dtype(word);
    if (!is_floating(dtype)) refuse(word, place, info, kProgramDTypes);
    return {Kind::kDType, static_cast<int>(dtype), 0.0};
  }
  refuse(word, place, info, "a value (v0), an operand (b0), a number or None");
}

// Reads one argument's value and checks that its place allows it.
Argument read_argument(std::string_view word, const ArgumentInfo& place, const OperationInfo& info,
                       int num_values) {
  const Argument argument = parse_argument(word, place, info, num_values);
  const auto expect = [&](bool allowed, std::string_view what) {
    if (!allowed) refuse(word, place, info, what);
  };
  const bool is_tensor = argument.kind == Kind::kValue || argument.kind == Kind::kOperand;
  switch (place.kind) {
    case ArgumentKind::kTensor:
      expect(is_tensor, "a value (v0) or an operand (b0)");
      break;
    case ArgumentKind::kAny:
      expect(is_tensor || argument.is_number(), "a value (v0), an operand (b0) or a number");
      break;
    case ArgumentKind::kOptional:
      break;
    case ArgumentKind::kNumber:
      expect(argument.is_number(), "a number");
      break;
    case ArgumentKind::kInteger:
      expect(argument.kind == Kind::kInt && argument.number >= 1 && argument.number <= 2147483647.0,
             "a positive integer of at most 2147483647");
      break;
    case ArgumentKind::kChannel:
      expect(argument.kind == Kind::kOperand, "an operand (b0) of shape (K,)");
      break;
    case ArgumentKind::kOptionalChannel:
      expect(argument.kind == Kind::kOperand || argument.kind == Kind::kNone,
             "an operand (b0) of shape (K,) or None");
      break;
    case ArgumentKind::kChoice:
      if (argument.kind != Kind::kChoice) refuse(word, place, info, concat("one of ", place.choices));
      break;
    case ArgumentKind::kDType:
      expect(argument.kind == Kind::kDType, kProgramDTypes);
      break;
  }
  return argument;
}

Argument default_argument(const ArgumentInfo& place) {
  switch (place.kind) {
    case ArgumentKind::kChoice:
      return {Kind::kChoice, static_cast<int>(place.default_value), 0.0};
    case ArgumentKind::kNumber:
      return {Kind::kFloat, 0, place.default_value};
    default:
      return {};
  }
}

bool is_default(const Argument& argument, const ArgumentInfo& place) {
  if (!place.has_default) return false;
  const Argument standard = default_argument(place);
  if (place.kind == ArgumentKind::kNumber)
    return argument.number == standard.number && argument.kind != Kind::kBool;
  return argument.kind == standard.kind && argument.index == standard.index;
}

// Fills in defaults, also where a number equal to the default was given as an int, and checks the whole.
void complete_statement(std::string_view text, const std::array<bool, kMaxArguments>& given,
                        Statement& statement) {
  const OperationInfo& info = operation_info(statement.op);
  bool any_tensor = false;
  for (int i = 0; i < info.num_arguments(); ++i) {
    const ArgumentInfo& place = info.arguments[i];
    Argument& argument = statement.arguments[i];
    if (!given[i] && !place.has_default) {
      throw InvalidArgument(concat("argument '", place.name, "' of ", signature(info),
                                   " is missing in statement '", text, "'"));
    }
    if (!given[i] || is_default(argument, place)) argument = default_argument(place);
    any_tensor |= argument.kind == Kind::kValue || argument.kind == Kind::kOperand;
  }
  require(any_tensor, "statement '", text, "' computes a constant; write the number instead");
  require(!statement.in_place || statement.arguments[0].kind == Kind::kValue, "in-place statement '", text,
          "' must have a value as its first argument");
  if (statement.op == Opcode::kClamp) {
    require(statement.arguments[1].kind != Kind::kNone || statement.arguments[2].kind != Kind::kNone,
            "clamp needs min, max or both in statement '", text, "'");
  }
}

int find_argument(const OperationInfo& info, std::string_view name) {
  for (int i = 0; i < info.num_arguments(); ++i) {
    if (info.arguments[i].name == name) return i;
  }
  throw InvalidArgument(concat("unknown argument '", name, "' of ", signature(info)));
}

Statement parse_statement(std::string_view text, int num_values) {
  Reader reader(text);
  const std::string_view target = reader.word();
  require(numbered(target, 'v') == num_values, "statement '", text, "' must assign v", num_values, ", not '",
          target, "'");
  reader.expect('=');
  std::string_view name = reader.word();
  Statement statement{};
  if (name.ends_with('_')) {
    statement.in_place = true;
    name.remove_suffix(1);
  }
  require(!name.empty(), "statement '", text, "' names no operation");
  statement.op = find_operation(name);
  const OperationInfo& info = operation_info(statement.op);

  std::array<bool, kMaxArguments> given{};
  bool keywords = false;
  int position = 0;
  reader.expect('(');
  while (!reader.take(')')) {
    if (position > 0 || keywords) reader.expect(',');
    std::string_view word = reader.word();
    int place = position;
    if (!word.empty() && reader.take('=')) {
      keywords = true;
      place = find_argument(info, word);
      word = reader.word();
    } else {
      require(!keywords, "a positional argument follows a keyword in statement '", text, "'");
      ++position;
    }
    require(!word.empty(), "an argument is missing in statement '", text, "'");
    if (place >= info.num_arguments()) {
      throw InvalidArgument(concat("too many arguments for ", signature(info), " in statement '", text, "'"));
    }
    require(!given[place], "argument '", info.arguments[place].name, "' is given twice in statement '", text,
            "'");
    given[place] = true;
    statement.arguments[place] = read_argument(word, info.arguments[place], info, num_values);
  }
  require(reader.at_end(), "text after ')' in statement '", text, "'");
  complete_statement(text, given, statement);
  return statement;
}

// Statements that the result needs, renumbered.
std::vector<Statement> drop_unused(const std::vector<Statement>& statements) {
  const int count = static_cast<int>(statements.size());
  std::vector<bool> needed(count + 1, false);
  needed[count] = true;
  for (int i = count; i > 0; --i) {
    if (!needed[i]) continue;
    for (const Argument& argument : statements[i - 1].arguments) {
      if (argument.kind == Kind::kValue) needed[argument.index] = true;
    }
  }
  std::vector<int> renumbered(count + 1, 0);
  std::vector<Statement> kept;
  for (int i = 1; i <= count; ++i) {
    if (!needed[i]) continue;
    Statement statement = statements[i - 1];
    for (Argument& argument : statement.arguments) {
      if (argument.kind == Kind::kValue) argument.index = renumbered[argument.index];
    }
    kept.push_back(statement);
    renumbered[i] = static_cast<int>(kept.size());
  }
  return kept;
}

// Throws unless the result is computed from v0 and there is one GroupNorm at most; returns its index, or -1.
int check_data_flow(const std::vector<Statement>& statements) {
  const int count = static_cast<int>(statements.size());
  std::vector<bool> from_conv(count + 1, false);
  from_conv[0] = true;
  int group_norm = -1;
  for (int i = 0; i < count; ++i) {
    for (const Argument& argument : statements[i].arguments) {
      if (argument.kind != Kind::kValue) continue;
      if (from_conv[argument.index]) from_conv[i + 1] = true;
    }
    if (statements[i].op == Opcode::kGroupNorm) {
      require(group_norm < 0, "a program has at most one group_norm; v", group_norm + 1, " is one already");
      require(from_conv[i + 1], "group_norm of a value that is not computed from the conv output v0");
      group_norm = i;
    }
  }
  require(from_conv[count], "the result is not computed from the conv output v0");
  return group_norm;
}

void check_live_values(const std::vector<Statement>& statements) {
  const int count = static_cast<int>(statements.size());
  std::vector<int> last_use(count + 1, -1);
  last_use[count] = count;
  for (int i = 0; i < count; ++i) {
    for (const Argument& argument : statements[i].arguments) {
      if (argument.kind == Kind::kValue) last_use[argument.index] = i;
    }
  }
  for (int i = 0; i < count; ++i) {
    int live = 0;
    std::string names;
    for (int value = 0; value <= i; ++value) {
      if (last_use[value] < i) continue;
      ++live;
      names += concat(names.empty() ? "v" : ", v", value);
    }
    require(live <= kMaxLiveValues, "too many live values: ", names, " are all needed at statement v", i + 1,
            ", and a program keeps at most ", kMaxLiveValues, "; use values sooner or split the program");
  }
}

std::vector<bool> collect_operands(const std::vector<Statement>& statements) {
  std::array<bool, kMaxOperands> used{};
  std::array<bool, kMaxOperands> channel{};
  std::array<bool, kMaxOperands> broadcast{};
  int count = 0;
  for (const Statement& statement : statements) {
    const OperationInfo& info = operation_info(statement.op);
    for (int i = 0; i < info.num_arguments(); ++i) {
      const Argument& argument = statement.arguments[i];
      if (argument.kind != Kind::kOperand) continue;
      const ArgumentKind place = info.arguments[i].kind;
      const bool is_channel = place == ArgumentKind::kChannel || place == ArgumentKind::kOptionalChannel;
      used[argument.index] = true;
      (is_channel ? channel : broadcast)[argument.index] = true;
      count = std::max(count, argument.index + 1);
    }
  }
  std::vector<bool> result;
  for (int i = 0; i < count; ++i) {
    require(used[i], "operand b", i, " is not used by the result");
    require(!(channel[i] && broadcast[i]), "operand b", i,
            " is used as a (K,) vector and as a tensor that broadcasts; pass it twice, the second time as "
            "b.view(-1, 1, 1)");
    result.push_back(channel[i]);
  }
  return result;
}

void print_number(std::string& text, const Argument& argument) {
  if (argument.kind == Kind::kBool) {
    text += argument.number != 0.0 ? "True" : "False";
    return;
  }
  std::array<char, 40> digits{};
  if (std::isnan(argument.number)) {
    text += "nan";
    return;
  }
  const auto end = argument.kind == Kind::kInt
                       ? std::to_chars(digits.data(), digits.data() + digits.size(),
                                       static_cast<long long>(argument.number))
                             .ptr
                       : std::to_chars(digits.data(), digits.data() + digits.size(), argument.number).ptr;
  const std::string_view printed(digits.data(), end - digits.data());
  text += printed;
  if (argument.kind == Kind::kFloat && printed.find_first_of(".einf") == std::string_view::npos) text += ".0";
}

std::string print(const std::vector<Statement>& statements) {
  std::string text;
  for (std::size_t i = 0; i < statements.size(); ++i) {
    const Statement& statement = statements[i];
    const OperationInfo& info = operation_info(statement.op);
    text += concat(i ? "; v" : "v", i + 1, " = ", info.name, statement.in_place ? "_(" : "(");
    bool keywords = false;
    for (int k = 0; k < info.num_arguments(); ++k) {
      const ArgumentInfo& place = info.arguments[k];
      const Argument& argument = statement.arguments[k];
      if (is_default(argument, place)) {
        keywords = true;
        continue;
      }
      if (k) text += ", ";
      if (keywords || place.has_default || place.kind == ArgumentKind::kDType)
        text += concat(place.name, "=");
      switch (argument.kind) {
        case Kind::kNone:
          text += "None";
          break;
        case Kind::kValue:
          text += concat("v", argument.index);
          break;
        case Kind::kOperand:
          text += concat("b", argument.index);
          break;
        case Kind::kChoice:
          text += choice_word(place.choices, argument.index);
          break;
        case Kind::kDType:
          text += dtype_name(static_cast<DType>(argument.index));
          break;
        default:
          print_number(text, argument);
      }
    }
    text += ")";
  }
  return text;
}

}  // namespace

Program Program::parse(std::string_view text) {
  Program program;
  std::vector<Statement> statements;
  while (!text.empty()) {
    const std::size_t end = text.find_first_of(";\n");
    std::string_view statement = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    while (!statement.empty() && std::isspace(static_cast<unsigned char>(statement.front())))
      statement.remove_prefix(1);
    while (!statement.empty() && std::isspace(static_cast<unsigned char>(statement.back())))
      statement.remove_suffix(1);
    if (statement.empty()) continue;
    statements.push_back(parse_statement(statement, static_cast<int>(statements.size()) + 1));
  }
  program.statements_ = drop_unused(statements);
  require(static_cast<int>(program.statements_.size()) <= kMaxStatements, "the program has ",
          program.statements_.size(), " operations; at most ", kMaxStatements, " fit");
  program.group_norm_statement_ = check_data_flow(program.statements_);
  check_live_values(program.statements_);
  // Before dropping, so that an operand that only a dropped statement uses is reported.
  const std::vector<bool> given = collect_operands(statements);
  program.operand_is_channel_ = collect_operands(program.statements_);
  require(given.size() == program.operand_is_channel_.size(), "operand b", given.size() - 1,
          " is not used by the result");
  program.text_ = print(program.statements_);
  return program;
}

}  // namespace epiconv
