// The headers stand alone in C++, may come twice, and say the numbers that programs were built with. The C header
// needs C++11, the wrapper C++17.
#include <tidemill.h>
#include <tidemill.h>

#if __cplusplus >= 201703L
#include <tidemill.hpp>
#include <tidemill.hpp>

#include <type_traits>

template <class T> constexpr bool moves_only =
    std::is_nothrow_move_constructible<T>::value && std::is_nothrow_move_assignable<T>::value &&
    !std::is_copy_constructible<T>::value && !std::is_copy_assignable<T>::value;

static_assert(moves_only<tidemill::Model>, "a model has one owner");
static_assert(moves_only<tidemill::Session>, "a session has one owner");
static_assert(moves_only<tidemill::Sampler>, "a sampler has one owner");
static_assert(moves_only<tidemill::Cancel>, "a token has one owner");
#endif

static_assert(TIDEMILL_ABI_VERSION == 1, "the ABI");
static_assert(sizeof(tidemill_status) == 4 && static_cast<tidemill_status>(-1) < 0, "statuses are int32_t");
static_assert(TIDEMILL_OK == 0 && TIDEMILL_INTERNAL == 1 && TIDEMILL_INVALID_REQUEST == 2, "statuses");
static_assert(TIDEMILL_NOT_FOUND == 3 && TIDEMILL_CORRUPT == 4 && TIDEMILL_UNSUPPORTED == 5, "statuses");
static_assert(TIDEMILL_IO == 6 && TIDEMILL_MEMORY == 7 && TIDEMILL_CONTEXT_FULL == 8, "statuses");
static_assert(TIDEMILL_DEVICE == 9 && TIDEMILL_BUSY == 10 && TIDEMILL_TOO_SMALL == 11, "statuses");
static_assert(TIDEMILL_CANCELLED == 130, "statuses");
static_assert(TIDEMILL_TEXT == 1 && TIDEMILL_THINKING == 2 && TIDEMILL_TOOL_CALL == 3, "kinds of events");
static_assert(TIDEMILL_MALFORMED_TOOL_CALL == 4 && TIDEMILL_PROMPT == 5, "kinds of events");
static_assert(TIDEMILL_TEXT_WAS_THINKING == 6, "kinds of events");
static_assert(TIDEMILL_TOKENIZE_DOCUMENT == 1 && TIDEMILL_TOKENIZE_SPECIALS == 2, "flags");
static_assert(TIDEMILL_DETOKENIZE_SPECIALS == 1, "flags");

int main() { return tidemill_abi_version() == TIDEMILL_ABI_VERSION ? 0 : 1; }
