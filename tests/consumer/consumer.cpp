// Parses an epilogue program and prints its canonical text.
#include <epiconv/epilogue.h>

#include <iostream>

int main() {
  const epiconv::Program program = epiconv::Program::parse("v1 = relu(v0)");
  std::cout << program.text() << '\n';
}
