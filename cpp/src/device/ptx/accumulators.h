// Accumulators of wgmma, as macros that name them.
#pragma once

// The accumulators of a thread, from d[kFirst] on, as an instruction names them and as its operands: those of
// 32 columns, and what each 32 more columns have behind them.
// clang-format off
#define EPICONV_REGISTERS_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define EPICONV_REGISTERS_64 \
  EPICONV_REGISTERS_32 ", " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define EPICONV_REGISTERS_96 \
  EPICONV_REGISTERS_64 ", " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define EPICONV_REGISTERS_128 \
  EPICONV_REGISTERS_96 ", " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define EPICONV_REGISTERS_160 \
  EPICONV_REGISTERS_128 ", " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define EPICONV_REGISTERS_192 \
  EPICONV_REGISTERS_160 ", " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define EPICONV_REGISTERS_224 \
  EPICONV_REGISTERS_192 ", " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define EPICONV_REGISTERS_256 \
  EPICONV_REGISTERS_224 ", " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define EPICONV_ACCUMULATORS_32 \
  "+f"(d[kFirst + 0]), "+f"(d[kFirst + 1]), "+f"(d[kFirst + 2]), "+f"(d[kFirst + 3]), \
  "+f"(d[kFirst + 4]), "+f"(d[kFirst + 5]), "+f"(d[kFirst + 6]), "+f"(d[kFirst + 7]), \
  "+f"(d[kFirst + 8]), "+f"(d[kFirst + 9]), "+f"(d[kFirst + 10]), "+f"(d[kFirst + 11]), \
  "+f"(d[kFirst + 12]), "+f"(d[kFirst + 13]), "+f"(d[kFirst + 14]), "+f"(d[kFirst + 15])
#define EPICONV_ACCUMULATORS_64 \
  EPICONV_ACCUMULATORS_32, \
  "+f"(d[kFirst + 16]), "+f"(d[kFirst + 17]), "+f"(d[kFirst + 18]), "+f"(d[kFirst + 19]), \
  "+f"(d[kFirst + 20]), "+f"(d[kFirst + 21]), "+f"(d[kFirst + 22]), "+f"(d[kFirst + 23]), \
  "+f"(d[kFirst + 24]), "+f"(d[kFirst + 25]), "+f"(d[kFirst + 26]), "+f"(d[kFirst + 27]), \
  "+f"(d[kFirst + 28]), "+f"(d[kFirst + 29]), "+f"(d[kFirst + 30]), "+f"(d[kFirst + 31])
#define EPICONV_ACCUMULATORS_96 \
  EPICONV_ACCUMULATORS_64, \
  "+f"(d[kFirst + 32]), "+f"(d[kFirst + 33]), "+f"(d[kFirst + 34]), "+f"(d[kFirst + 35]), \
  "+f"(d[kFirst + 36]), "+f"(d[kFirst + 37]), "+f"(d[kFirst + 38]), "+f"(d[kFirst + 39]), \
  "+f"(d[kFirst + 40]), "+f"(d[kFirst + 41]), "+f"(d[kFirst + 42]), "+f"(d[kFirst + 43]), \
  "+f"(d[kFirst + 44]), "+f"(d[kFirst + 45]), "+f"(d[kFirst + 46]), "+f"(d[kFirst + 47])
#define EPICONV_ACCUMULATORS_128 \
  EPICONV_ACCUMULATORS_96, \
  "+f"(d[kFirst + 48]), "+f"(d[kFirst + 49]), "+f"(d[kFirst + 50]), "+f"(d[kFirst + 51]), \
  "+f"(d[kFirst + 52]), "+f"(d[kFirst + 53]), "+f"(d[kFirst + 54]), "+f"(d[kFirst + 55]), \
  "+f"(d[kFirst + 56]), "+f"(d[kFirst + 57]), "+f"(d[kFirst + 58]), "+f"(d[kFirst + 59]), \
  "+f"(d[kFirst + 60]), "+f"(d[kFirst + 61]), "+f"(d[kFirst + 62]), "+f"(d[kFirst + 63])
#define EPICONV_ACCUMULATORS_160 \
  EPICONV_ACCUMULATORS_128, \
  "+f"(d[kFirst + 64]), "+f"(d[kFirst + 65]), "+f"(d[kFirst + 66]), "+f"(d[kFirst + 67]), \
  "+f"(d[kFirst + 68]), "+f"(d[kFirst + 69]), "+f"(d[kFirst + 70]), "+f"(d[kFirst + 71]), \
  "+f"(d[kFirst + 72]), "+f"(d[kFirst + 73]), "+f"(d[kFirst + 74]), "+f"(d[kFirst + 75]), \
  "+f"(d[kFirst + 76]), "+f"(d[kFirst + 77]), "+f"(d[kFirst + 78]), "+f"(d[kFirst + 79])
#define EPICONV_ACCUMULATORS_192 \
  EPICONV_ACCUMULATORS_160, \
  "+f"(d[kFirst + 80]), "+f"(d[kFirst + 81]), "+f"(d[kFirst + 82]), "+f"(d[kFirst + 83]), \
  "+f"(d[kFirst + 84]), "+f"(d[kFirst + 85]), "+f"(d[kFirst + 86]), "+f"(d[kFirst + 87]), \
  "+f"(d[kFirst + 88]), "+f"(d[kFirst + 89]), "+f"(d[kFirst + 90]), "+f"(d[kFirst + 91]), \
  "+f"(d[kFirst + 92]), "+f"(d[kFirst + 93]), "+f"(d[kFirst + 94]), "+f"(d[kFirst + 95])
#define EPICONV_ACCUMULATORS_224 \
  EPICONV_ACCUMULATORS_192, \
  "+f"(d[kFirst + 96]), "+f"(d[kFirst + 97]), "+f"(d[kFirst + 98]), "+f"(d[kFirst + 99]), \
  "+f"(d[kFirst + 100]), "+f"(d[kFirst + 101]), "+f"(d[kFirst + 102]), "+f"(d[kFirst + 103]), \
  "+f"(d[kFirst + 104]), "+f"(d[kFirst + 105]), "+f"(d[kFirst + 106]), "+f"(d[kFirst + 107]), \
  "+f"(d[kFirst + 108]), "+f"(d[kFirst + 109]), "+f"(d[kFirst + 110]), "+f"(d[kFirst + 111])
#define EPICONV_ACCUMULATORS_256 \
  EPICONV_ACCUMULATORS_224, \
  "+f"(d[kFirst + 112]), "+f"(d[kFirst + 113]), "+f"(d[kFirst + 114]), "+f"(d[kFirst + 115]), \
  "+f"(d[kFirst + 116]), "+f"(d[kFirst + 117]), "+f"(d[kFirst + 118]), "+f"(d[kFirst + 119]), \
  "+f"(d[kFirst + 120]), "+f"(d[kFirst + 121]), "+f"(d[kFirst + 122]), "+f"(d[kFirst + 123]), \
  "+f"(d[kFirst + 124]), "+f"(d[kFirst + 125]), "+f"(d[kFirst + 126]), "+f"(d[kFirst + 127])
// clang-format on
