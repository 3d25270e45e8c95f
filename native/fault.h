// Errors the user sees; bind.cpp turns each kind into its class in steno.core.errors.
#pragma once
#include <stdexcept>
#include <string>

namespace steno {

struct Fault : std::runtime_error {
  enum Kind { VALUE, USER, PROMPT, CAPS, MODEL };
  Kind kind;
  Fault(Kind k, const std::string& message) : std::runtime_error(message), kind(k) {}
};

}  // namespace steno
