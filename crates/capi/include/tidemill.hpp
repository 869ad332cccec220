/// The C++ side of Tidemill's C API: one C++17 header, and nothing to link but the C library.
///
/// Every function of tidemill.h is here under the name of the thing that it belongs to; what it does, what it may
/// fail with and which threads may call it is written there. What this header adds:
///
/// * handles are owned by move-only types, and freed with them;
/// * a failure is an `Error` with the status; `generate` alone gives CANCELLED back, since its result is there;
/// * an exception that a callback throws stops the call, and goes on in whoever made the call;
/// * a callback answers `true` to go on and `false` to stop.
///
/// A type that was moved from holds no handle: its functions throw INVALID_REQUEST.
#ifndef TIDEMILL_HPP
#define TIDEMILL_HPP

#include "tidemill.h"

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace tidemill {

/// A failed call: what() is the library's message.
class Error : public std::runtime_error {
public:
    Error(tidemill_status status, const std::string &message) : std::runtime_error(message), status_(status) {}

    tidemill_status status() const noexcept { return status_; }
    const char *status_name() const noexcept { return tidemill_status_name(status_); }

private:
    tidemill_status status_;
};

/// Token ids.
using Tokens = std::vector<std::uint32_t>;
/// How far a call is: bytes in the opening of a model, tokens elsewhere. `false` stops it.
using Progress = std::function<bool(double done, double total)>;
/// What a generation makes: `kind` is one of TIDEMILL_TEXT and its neighbours; ignore kinds that you do not know.
/// `data` lives until the callback returns. `false` stops the generation.
using OnEvent = std::function<bool(std::int32_t kind, std::string_view data)>;
/// One answered request of a batch. `result` lives until the callback returns. `false` stops the batch.
using OnResult = std::function<bool(std::size_t index, tidemill_status status, std::string_view result)>;

/// What `generate` made.
struct Result {
    /// TIDEMILL_OK, or TIDEMILL_CANCELLED where a callback or a token stopped it.
    tidemill_status status = TIDEMILL_OK;
    /// The object of `tidemill run --json`, with "tokens".
    std::string json;

    bool cancelled() const noexcept { return status == TIDEMILL_CANCELLED; }
};

/// What the model thinks of tokens that it was given.
struct Scores {
    /// The natural log-probability of each token after all before it; NaN for the first of an empty session.
    std::vector<float> logprobs;
    /// The token that was the likeliest in its place; UINT32_MAX for the first of an empty session.
    Tokens best;
};

/// How often each expert of each layer was used.
struct Heat {
    std::size_t layers = 0;
    std::size_t experts = 0;
    /// [layers, experts]
    std::vector<std::uint64_t> uses;

    std::uint64_t at(std::size_t layer, std::size_t expert) const {
        if (layer >= layers || expert >= experts) {
            throw std::out_of_range("there is no such expert");
        }
        return uses[layer * experts + expert];
    }
};

namespace detail {

/// A text of the library's, freed in every case.
class Text {
public:
    Text() = default;
    Text(const Text &) = delete;
    Text &operator=(const Text &) = delete;
    ~Text() { tidemill_string_free(text_); }

    char **out() noexcept { return &text_; }
    bool is_some() const noexcept { return text_ != nullptr; }
    std::string str() const { return text_ == nullptr ? std::string() : std::string(text_); }

private:
    char *text_ = nullptr;
};

/// Throws what a call failed with.
inline void check(tidemill_status status, const Text &error) {
    if (status != TIDEMILL_OK) {
        throw Error(status, error.is_some() ? error.str() : std::string(tidemill_status_name(status)));
    }
}

/// A text that C reads up to its first NUL: one with a NUL inside would be cut there without a word.
inline std::string c_text(std::string_view text, const char *what) {
    if (text.find('\0') != std::string_view::npos) {
        throw Error(TIDEMILL_INVALID_REQUEST, std::string(what) + " has a NUL in it");
    }
    return std::string(text);
}

/// Options: empty ones are none.
inline const char *or_null(const std::string &json) noexcept { return json.empty() ? nullptr : json.c_str(); }

/// An empty vector may have no address, and the library takes NULL for a mistake.
template <class T> const T *address(const T *data) noexcept {
    static const T nothing{};
    return data == nullptr ? &nothing : data;
}

/// Fills a vector or a string by a call that says how many there are. `likely` is where it begins; a second call is
/// made where that was too few.
template <class Out, class Call> Out filled(std::size_t likely, const Call &call) {
    Out out;
    out.resize(likely);
    for (;;) {
        Text error;
        std::size_t count = 0;
        auto *data = out.empty() ? nullptr : out.data();
        const tidemill_status status = call(data, out.size(), &count, error.out());
        if (status != TIDEMILL_TOO_SMALL) {
            check(status, error);
        }
        const bool fits = count <= out.size();
        out.resize(count);
        if (fits) {
            check(status, error);
            return out;
        }
    }
}

/// Stands between a C callback and a C++ one: an exception must not unwind through the library.
template <class F> struct Guarded {
    const F &call;
    std::exception_ptr thrown = nullptr;

    explicit Guarded(const F &f) : call(f) {}

    template <class... Arguments> std::int32_t operator()(Arguments... arguments) noexcept {
        try {
            return call(arguments...) ? 0 : 1;
        } catch (...) {
            thrown = std::current_exception();
            return 1;
        }
    }

    void go_on() const {
        if (thrown) {
            std::rethrow_exception(thrown);
        }
    }
};

inline std::int32_t on_progress(void *user, double done, double total) noexcept {
    return (*static_cast<Guarded<Progress> *>(user))(done, total);
}

inline std::int32_t on_event(void *user, std::int32_t kind, const char *data, std::size_t bytes) noexcept {
    const std::string_view view = bytes == 0 ? std::string_view() : std::string_view(data, bytes);
    return (*static_cast<Guarded<OnEvent> *>(user))(kind, view);
}

inline std::int32_t on_result(void *user, std::size_t at, tidemill_status status, const char *json) noexcept {
    const std::string_view view = json == nullptr ? std::string_view() : std::string_view(json);
    return (*static_cast<Guarded<OnResult> *>(user))(at, status, view);
}

/// The C callback, or none where there is nothing to call.
template <class C, class F> C callback(C through, const F &f) noexcept { return f ? through : nullptr; }

/// Runs a call that shows its progress.
template <class Call> void with_progress(const Progress &progress, const Call &call) {
    Guarded<Progress> guarded(progress);
    Text error;
    const tidemill_status status = call(callback(&on_progress, progress), &guarded, error.out());
    guarded.go_on();
    check(status, error);
}

/// Asks for a text.
template <class Call> std::string text(const Call &call) {
    Text out, error;
    check(call(out.out(), error.out()), error);
    return out.str();
}

struct Free {
    void operator()(tidemill_cancel *handle) const noexcept { tidemill_cancel_free(handle); }
    void operator()(tidemill_model *handle) const noexcept { tidemill_model_free(handle); }
    void operator()(tidemill_session *handle) const noexcept { tidemill_session_free(handle); }
    void operator()(tidemill_sampler *handle) const noexcept { tidemill_sampler_free(handle); }
};

template <class T> using Handle = std::unique_ptr<T, Free>;

} // namespace detail

/// Of the library that was loaded; TIDEMILL_ABI_VERSION is that of the header.
inline std::uint32_t abi_version() noexcept { return tidemill_abi_version(); }
/// Release, commit, target and features.
inline std::string version() { return tidemill_version(); }
inline std::string status_name(tidemill_status status) { return tidemill_status_name(status); }

/// What opening `model` with `options` would take; reads headers only.
inline std::string plan(std::string_view model, std::string_view options = {}) {
    const std::string path = detail::c_text(model, "the model's path");
    const std::string json = detail::c_text(options, "options");
    return detail::text([&](char **out, char **error) {
        return tidemill_plan(path.c_str(), detail::or_null(json), out, error);
    });
}

/// Stops calls from another thread or from a signal handler. It stays set.
class Cancel {
public:
    Cancel() : handle_(tidemill_cancel_new()) {
        if (!handle_) {
            throw Error(TIDEMILL_MEMORY, "there is no memory for a cancel handle");
        }
    }

    void set() noexcept { tidemill_cancel_set(handle_.get()); }
    tidemill_cancel *get() const noexcept { return handle_.get(); }

private:
    detail::Handle<tidemill_cancel> handle_;
};

namespace detail {

inline const tidemill_cancel *raw(const Cancel *cancel) noexcept {
    return cancel == nullptr ? nullptr : cancel->get();
}

} // namespace detail

/// One sequence of tokens and its state. Lives on when its `Model` is gone.
class Session {
public:
    /// Takes over a handle.
    explicit Session(tidemill_session *handle) noexcept : handle_(handle) {}

    tidemill_session *get() const noexcept { return handle_.get(); }
    explicit operator bool() const noexcept { return handle_ != nullptr; }

    std::size_t length() const noexcept { return tidemill_session_length(handle_.get()); }

    Tokens tokens() const {
        return detail::filled<Tokens>(length(), [&](auto *out, auto room, auto *count, char **error) {
            return tidemill_session_tokens(handle_.get(), out, room, count, error);
        });
    }

    /// Makes `tokens` the sequence; how many of them the session held already.
    std::size_t sync(const Tokens &tokens, const Progress &progress = {}, const Cancel *cancel = nullptr) {
        std::size_t reused = 0;
        detail::with_progress(progress, [&](tidemill_progress on, void *user, char **error) {
            return tidemill_session_sync(handle_.get(), detail::address(tokens.data()), tokens.size(), on, user,
                                         detail::raw(cancel), &reused, error);
        });
        return reused;
    }

    void append(const Tokens &tokens, const Progress &progress = {}, const Cancel *cancel = nullptr) {
        detail::with_progress(progress, [&](tidemill_progress on, void *user, char **error) {
            return tidemill_session_append(handle_.get(), detail::address(tokens.data()), tokens.size(), on, user,
                                           detail::raw(cancel), error);
        });
    }

    /// Appends `tokens`, and says how likely each was.
    Scores score(const Tokens &tokens, const Progress &progress = {}, const Cancel *cancel = nullptr) {
        // One more, so that there is an address where there are no tokens: the library says what is wrong then.
        Scores scores{std::vector<float>(tokens.size() + 1), Tokens(tokens.size() + 1)};
        detail::with_progress(progress, [&](tidemill_progress on, void *user, char **error) {
            return tidemill_session_score(handle_.get(), detail::address(tokens.data()), tokens.size(),
                                          scores.logprobs.data(), scores.best.data(), on, user,
                                          detail::raw(cancel), error);
        });
        scores.logprobs.pop_back();
        scores.best.pop_back();
        return scores;
    }

    void truncate(std::size_t length) {
        detail::Text error;
        detail::check(tidemill_session_truncate(handle_.get(), length, error.out()), error);
    }

    /// [vocab], after the last token.
    std::vector<float> logits() {
        std::vector<float> out;
        logits(out);
        return out;
    }

    /// The same into a vector that is used again: a loop of one's own allocates once.
    void logits(std::vector<float> &out) {
        if (out.empty()) {
            detail::Text error;
            std::size_t count = 0;
            detail::check(tidemill_session_logits(handle_.get(), nullptr, 0, &count, error.out()), error);
            out.resize(count);
        }
        for (;;) {
            detail::Text error;
            std::size_t count = 0;
            const auto status = tidemill_session_logits(handle_.get(), out.data(), out.size(), &count, error.out());
            if (status != TIDEMILL_TOO_SMALL || count <= out.size()) {
                detail::check(status, error);
                out.resize(count);
                return;
            }
            out.resize(count);
        }
    }

    void save(std::string_view path) {
        const std::string name = detail::c_text(path, "the path");
        detail::Text error;
        detail::check(tidemill_session_save(handle_.get(), name.c_str(), error.out()), error);
    }

    void load(std::string_view path) {
        const std::string name = detail::c_text(path, "the path");
        detail::Text error;
        detail::check(tidemill_session_load(handle_.get(), name.c_str(), error.out()), error);
    }

    /// Answers a request. Where `on` or `cancel` stopped it, the result has what was made until then.
    Result generate(std::string_view request, const OnEvent &on = {}, const Cancel *cancel = nullptr) {
        const std::string json = detail::c_text(request, "the request");
        detail::Guarded<OnEvent> guarded(on);
        detail::Text out, error;
        const tidemill_status status =
            tidemill_generate(handle_.get(), json.c_str(), detail::callback(&detail::on_event, on), &guarded,
                              detail::raw(cancel), out.out(), error.out());
        guarded.go_on();
        if (status != TIDEMILL_CANCELLED || !out.is_some()) {
            detail::check(status, error);
        }
        return Result{status, out.str()};
    }

private:
    detail::Handle<tidemill_session> handle_;
};

/// Chooses tokens. Lives on when its `Model` is gone.
class Sampler {
public:
    /// Takes over a handle.
    explicit Sampler(tidemill_sampler *handle) noexcept : handle_(handle) {}

    tidemill_sampler *get() const noexcept { return handle_.get(); }
    explicit operator bool() const noexcept { return handle_ != nullptr; }

    /// Chooses the token after the session's last, and does not append it.
    std::uint32_t sample(Session &session) {
        std::uint32_t token = 0;
        detail::Text error;
        detail::check(tidemill_sampler_sample(handle_.get(), session.get(), &token, error.out()), error);
        return token;
    }

    /// Chooses by logits of any origin. Penalties count the tokens of `history`.
    std::uint32_t sample_logits(const std::vector<float> &logits, const Tokens &history = {}) {
        std::uint32_t token = 0;
        detail::Text error;
        detail::check(tidemill_sampler_sample_logits(handle_.get(), detail::address(logits.data()), logits.size(),
                                                     detail::address(history.data()), history.size(), &token,
                                                     error.out()),
                      error);
        return token;
    }

private:
    detail::Handle<tidemill_sampler> handle_;
};

/// A model that is open.
class Model {
public:
    /// Opens the GGUF file or the directory at `path`.
    explicit Model(std::string_view path, std::string_view options = {}, const Progress &progress = {},
                   const Cancel *cancel = nullptr) {
        const std::string name = detail::c_text(path, "the model's path");
        const std::string json = detail::c_text(options, "options");
        tidemill_model *model = nullptr;
        detail::with_progress(progress, [&](tidemill_progress on, void *user, char **error) {
            const tidemill_status status = tidemill_model_open(name.c_str(), detail::or_null(json), on, user,
                                                               detail::raw(cancel), &model, error);
            handle_.reset(model); // owned before the callback's exception goes on
            return status;
        });
    }

    /// Takes over a handle.
    explicit Model(tidemill_model *handle) noexcept : handle_(handle) {}

    tidemill_model *get() const noexcept { return handle_.get(); }
    explicit operator bool() const noexcept { return handle_ != nullptr; }

    std::string info() const {
        return detail::text([&](char **out, char **error) { return tidemill_model_info(get(), out, error); });
    }

    std::string stats(bool reset = false) const {
        return detail::text(
            [&](char **out, char **error) { return tidemill_model_stats(get(), reset ? 1 : 0, out, error); });
    }

    Heat heat() const {
        Heat heat;
        using Uses = std::vector<std::uint64_t>;
        heat.uses = detail::filled<Uses>(0, [&](auto *out, auto room, auto *count, char **error) {
            const auto status = tidemill_model_heat(get(), out, room, &heat.layers, &heat.experts, error);
            *count = heat.layers * heat.experts;
            return status;
        });
        return heat;
    }

    /// `flags`: TIDEMILL_TOKENIZE_DOCUMENT and its neighbours.
    Tokens tokenize(std::string_view text, std::uint32_t flags = 0) const {
        // A token is a byte at least, but for those that stand before and after a document.
        return detail::filled<Tokens>(text.size() + 4, [&](auto *out, auto room, auto *count, char **error) {
            return tidemill_tokenize(get(), detail::address(text.data()), text.size(), flags, out, room, count,
                                     error);
        });
    }

    /// `flags`: TIDEMILL_DETOKENIZE_SPECIALS.
    std::string detokenize(const Tokens &tokens, std::uint32_t flags = 0) const {
        const std::size_t likely = tokens.size() * 8 + 16;
        return detail::filled<std::string>(likely, [&](auto *out, auto room, auto *bytes, char **error) {
            return tidemill_detokenize(get(), detail::address(tokens.data()), tokens.size(), flags, out, room,
                                       bytes, error);
        });
    }

    /// The tokens of the prompt that `generate` would make of a request with messages.
    Tokens chat_prompt(std::string_view request) const {
        const std::string json = detail::c_text(request, "the request");
        return detail::filled<Tokens>(json.size() + 64, [&](auto *out, auto room, auto *count, char **error) {
            return tidemill_chat_prompt(get(), json.c_str(), out, room, count, error);
        });
    }

    Session session() {
        tidemill_session *session = nullptr;
        detail::Text error;
        detail::check(tidemill_session_new(get(), &session, error.out()), error);
        return Session(session);
    }

    Sampler sampler(std::string_view options = {}) const {
        const std::string json = detail::c_text(options, "options");
        tidemill_sampler *sampler = nullptr;
        detail::Text error;
        detail::check(tidemill_sampler_new(get(), detail::or_null(json), &sampler, error.out()), error);
        return Sampler(sampler);
    }

    /// Runs independent requests, as many at once as the model was opened for. `on` is called once for each, in
    /// order of completion.
    void batch(const std::vector<std::string> &requests, const OnResult &on = {}, const Cancel *cancel = nullptr) {
        std::vector<std::string> texts;
        std::vector<const char *> pointers;
        for (const std::string &request : requests) {
            texts.push_back(detail::c_text(request, "a request"));
        }
        for (const std::string &text : texts) {
            pointers.push_back(text.c_str());
        }
        detail::Guarded<OnResult> guarded(on);
        detail::Text error;
        const tidemill_status status =
            tidemill_batch(get(), detail::address(pointers.data()), pointers.size(),
                           detail::callback(&detail::on_result, on), &guarded, detail::raw(cancel), error.out());
        guarded.go_on();
        detail::check(status, error);
    }

private:
    detail::Handle<tidemill_model> handle_;
};

} // namespace tidemill

#endif
