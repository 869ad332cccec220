// The C++ wrapper: every function of it, exceptions that leave callbacks, moves, errors. wrapper MODEL SCRATCH
#include "model.h"

#include <tidemill.hpp>

#include <limits>
#include <utility>

namespace {

using tidemill::Tokens;

const char *const story = "{\"prompt\":\"" STORY "\",\"temperature\":0,\"max_tokens\":16,\"ignore_eos\":true}";

/// What a callback throws.
struct Thrown {
    int number;
};

/// The status that `work` fails with; OK where it does not.
template <class Work> tidemill_status status_of(const Work &work) {
    try {
        work();
    } catch (const tidemill::Error &error) {
        CHECK(error.what()[0] != '\0' && error.status() != TIDEMILL_OK);
        CHECK(std::string(error.status_name()) == tidemill_status_name(error.status()));
        return error.status();
    }
    return TIDEMILL_OK;
}

/// The number that `work` throws; 0 where it throws none.
template <class Work> int thrown_by(const Work &work) {
    try {
        work();
    } catch (const Thrown &thrown) {
        return thrown.number;
    }
    return 0;
}

Tokens ids_in(const std::string &result) {
    Tokens ids(ROOM);
    ids.resize(result_ids(result.c_str(), ids.data(), ids.size()));
    return ids;
}

std::string text_in(const std::string &result) {
    char *text = json_text(json_member(result.c_str(), "text"));
    CHECK(text != nullptr);
    std::string owned(text);
    std::free(text);
    return owned;
}

tidemill::Model check_open(const std::string &path) {
    CHECK(tidemill::abi_version() == TIDEMILL_ABI_VERSION && tidemill::version() == tidemill_version());
    CHECK(tidemill::status_name(TIDEMILL_BUSY) == tidemill_status_name(TIDEMILL_BUSY));
    CHECK(json_is(json_member(tidemill::plan(path, OPTIONS).c_str(), "fits"), "true"));
    double seen = 0;
    tidemill::Cancel never;
    tidemill::Model model(
        path, OPTIONS,
        [&](double done, double total) {
            CHECK(done <= total);
            seen = done;
            return true;
        },
        &never);
    CHECK(seen > 0 && model && model.get() != nullptr);
    CHECK(status_of([&] { tidemill::Model(path + "/nothing"); }) == TIDEMILL_NOT_FOUND);
    CHECK(status_of([&] { tidemill::Model(path, "{\"treads\":1}"); }) == TIDEMILL_INVALID_REQUEST);
    CHECK(status_of([&] { tidemill::Model(path, OPTIONS, [](double, double) { return false; }); }) ==
          TIDEMILL_CANCELLED);
    CHECK(thrown_by([&] { tidemill::Model(path, OPTIONS, [](double, double) -> bool { throw Thrown{1}; }); }) == 1);
    CHECK(status_of([&] { tidemill::plan(path, "{\"threads\":0}"); }) == TIDEMILL_INVALID_REQUEST);
    return model; // a move
}

void check_texts(const tidemill::Model &model) {
    const std::string text("Hello\0world, \xc3\xa9!", 16);
    const Tokens ids = model.tokenize(text);
    CHECK(ids.size() > 3 && model.detokenize(ids) == text);
    CHECK(model.tokenize("").empty() && model.tokenize({}).empty() && model.detokenize({}).empty());
    CHECK(model.tokenize("<|im_end|>", TIDEMILL_TOKENIZE_SPECIALS) == Tokens{2});
    CHECK(model.detokenize({2}).empty() && model.detokenize({2}, TIDEMILL_DETOKENIZE_SPECIALS) == "<|im_end|>");
    std::string many;
    for (int at = 0; at < 300; at++) {
        many += "extraordinarily ";
    }
    CHECK(model.detokenize(model.tokenize(many)) == many);
    CHECK(model.chat_prompt("{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}").size() > 3);
    CHECK(status_of([&] { model.tokenize("\xff"); }) == TIDEMILL_INVALID_REQUEST);
    CHECK(status_of([&] { model.detokenize({VOCABULARY}); }) == TIDEMILL_INVALID_REQUEST);
    // C would read such a text up to its NUL.
    CHECK(status_of([&] { model.chat_prompt(std::string_view("{}\0}", 4)); }) == TIDEMILL_INVALID_REQUEST);
}

void check_sessions(tidemill::Model &model, const std::string &scratch) {
    tidemill::Session session = model.session(), other = model.session();
    const Tokens ids = model.tokenize("Once upon a time there was a little girl", TIDEMILL_TOKENIZE_DOCUMENT);
    const Tokens begin(ids.begin(), ids.begin() + 4), rest(ids.begin() + 4, ids.end());
    double seen = 0;
    CHECK(session.length() == 0 && session.tokens().empty());
    CHECK(session.sync(begin, [&](double done, double) {
        seen = done;
        return true;
    }) == 0);
    session.append(rest);
    CHECK(seen >= 0 && session.tokens() == ids && session.length() == ids.size());
    std::vector<float> logits = session.logits(), again;
    session.logits(again);
    CHECK(logits.size() == VOCABULARY && logits == again);
    const tidemill::Scores scores = other.score(ids);
    CHECK(scores.logprobs.size() == ids.size() && scores.best.size() == ids.size());
    CHECK(scores.logprobs[0] != scores.logprobs[0] && scores.best[0] == UINT32_MAX && scores.logprobs[1] <= 0);
    const std::string path = scratch + "/wrapper.state";
    session.save(path);
    other.truncate(2);
    CHECK(other.tokens() == Tokens(ids.begin(), ids.begin() + 2));
    other.load(path);
    CHECK(other.tokens() == ids && other.sync(ids) == ids.size());
    std::remove(path.c_str());
    CHECK(status_of([&] { other.load(path); }) == TIDEMILL_NOT_FOUND && other.length() == 0);
    CHECK(status_of([&] { other.logits(); }) == TIDEMILL_INVALID_REQUEST);
    CHECK(status_of([&] { other.append({}); }) == TIDEMILL_INVALID_REQUEST);
    CHECK(status_of([&] { other.score({}); }) == TIDEMILL_INVALID_REQUEST);
    CHECK(status_of([&] { other.truncate(9); }) == TIDEMILL_INVALID_REQUEST);
    CHECK(status_of([&] { session.save(scratch + "/none/wrapper.state"); }) != TIDEMILL_OK);
    CHECK(thrown_by([&] { other.sync(ids, [](double, double) -> bool { throw Thrown{2}; }); }) == 2);
    CHECK(thrown_by([&] { session.append(ids, [](double, double) -> bool { throw Thrown{3}; }); }) == 3);
    CHECK(thrown_by([&] { session.score(ids, [](double, double) -> bool { throw Thrown{4}; }); }) == 4);
    CHECK(session.tokens() == ids);
}

void check_generate(tidemill::Model &model) {
    tidemill::Session session = model.session();
    std::string heard;
    const auto hear = [&](std::int32_t kind, std::string_view data) {
        heard += kind == TIDEMILL_TEXT ? data : std::string_view();
        return true;
    };
    const tidemill::Result whole = session.generate(story, hear);
    CHECK(!whole.cancelled() && whole.status == TIDEMILL_OK && text_in(whole.json) == heard);
    CHECK(ids_in(whole.json).size() == 16);
    // Stopped by the answer of the callback, by an exception, by a token.
    const auto refuse = [](std::int32_t kind, std::string_view) { return kind != TIDEMILL_TEXT; };
    const tidemill::Result part = session.generate(story, refuse);
    CHECK(part.cancelled() && ids_in(part.json).size() < 16);
    const auto raise = [](std::int32_t kind, std::string_view) -> bool {
        return kind == TIDEMILL_TEXT ? throw Thrown{5} : true;
    };
    CHECK(thrown_by([&] { session.generate(story, raise); }) == 5);
    tidemill::Cancel cancel;
    const auto stop = [&](std::int32_t kind, std::string_view) {
        if (kind == TIDEMILL_TEXT) {
            cancel.set();
        }
        return true;
    };
    const tidemill::Result stopped = session.generate(story, stop, &cancel);
    CHECK(stopped.cancelled() && !ids_in(stopped.json).empty() && ids_in(stopped.json).size() < 16);
    CHECK(session.generate(story, {}, &cancel).cancelled()); // it stays set
    CHECK(ids_in(session.generate(story).json) == ids_in(whole.json));
    CHECK(status_of([&] { session.generate("{\"prompt\":1}"); }) == TIDEMILL_INVALID_REQUEST);
    // A call from within a callback.
    tidemill_status inner = TIDEMILL_OK;
    session.generate(story, [&](std::int32_t, std::string_view) {
        inner = status_of([&] { session.truncate(0); });
        return false;
    });
    CHECK(inner == TIDEMILL_BUSY);
}

void check_samplers(tidemill::Model &model) {
    tidemill::Session session = model.session();
    tidemill::Sampler sampler = model.sampler("{\"temperature\":0}");
    session.sync(model.tokenize(STORY));
    const std::vector<float> logits = session.logits();
    CHECK(sampler && sampler.get() != nullptr && sampler.sample(session) == argmax(logits.data(), logits.size()));
    CHECK(sampler.sample_logits({0, 2, 1}) == 1 && sampler.sample_logits({1}, {0}) == 0);
    CHECK(status_of([&] { sampler.sample_logits({}); }) == TIDEMILL_INVALID_REQUEST);
    CHECK(status_of([&] { sampler.sample_logits({0, std::numeric_limits<float>::quiet_NaN()}); }) == TIDEMILL_CORRUPT);
    CHECK(status_of([&] { model.sampler("{\"top_p\":7}"); }) == TIDEMILL_INVALID_REQUEST);
    model.sampler();
}

void check_batch(tidemill::Model &model) {
    const std::vector<std::string> requests = {story, "{}", story};
    std::vector<tidemill_status> statuses(3, -1);
    std::vector<std::string> results(3);
    model.batch(requests, [&](std::size_t index, tidemill_status status, std::string_view result) {
        statuses.at(index) = status;
        results.at(index) = result;
        return true;
    });
    CHECK(statuses[0] == TIDEMILL_OK && statuses[1] == TIDEMILL_INVALID_REQUEST && statuses[2] == TIDEMILL_OK);
    CHECK(ids_in(results[0]) == ids_in(results[2]) && ids_in(results[0]).size() == 16);
    model.batch(requests);
    const auto raise = [](std::size_t, tidemill_status, std::string_view) -> bool { throw Thrown{6}; };
    CHECK(thrown_by([&] { model.batch(requests, raise); }) == 6);
    const auto refuse = [](std::size_t, tidemill_status, std::string_view) { return false; };
    CHECK(status_of([&] { model.batch(requests, refuse); }) == TIDEMILL_CANCELLED);
    tidemill::Cancel cancel;
    cancel.set();
    CHECK(status_of([&] { model.batch(requests, {}, &cancel); }) == TIDEMILL_CANCELLED);
}

void check_counts(const tidemill::Model &model) {
    CHECK(json_number(json_member(model.info().c_str(), "vocab_size")) == VOCABULARY);
    CHECK(model.stats(true).front() == '{' && model.stats().front() == '{');
    const tidemill::Heat heat = model.heat();
    CHECK(heat.layers == 8 && heat.experts == 32 && heat.uses.size() == 256);
    CHECK(heat.at(7, 31) == heat.uses[255]);
    bool is_outside = false;
    try {
        heat.at(8, 0);
    } catch (const std::out_of_range &) {
        is_outside = true;
    }
    CHECK(is_outside);
}

/// Moved handles go on, what they were moved from says so, and all outlive the model.
void check_moves(tidemill::Model first) {
    tidemill::Model model(std::move(first));
    CHECK(!first && status_of([&] { first.info(); }) == TIDEMILL_INVALID_REQUEST);
    tidemill::Session session = model.session();
    tidemill::Session moved(std::move(session));
    CHECK(!session && session.length() == 0 && status_of([&] { session.tokens(); }) == TIDEMILL_INVALID_REQUEST);
    session = std::move(moved);
    tidemill::Sampler sampler = model.sampler("{\"temperature\":0}");
    const Tokens ids = model.tokenize(STORY);
    { tidemill::Model gone(std::move(model)); }
    session.sync(ids);
    CHECK(sampler.sample(session) < VOCABULARY && session.tokens() == ids);
}

} // namespace

int main(int count, char **arguments) {
    CHECK(count >= 3);
    const std::size_t threads = threads_now();
    {
        tidemill::Model model = check_open(arguments[1]);
        check_texts(model);
        check_sessions(model, arguments[2]);
        check_generate(model);
        check_samplers(model);
        check_batch(model);
        check_counts(model);
        check_moves(std::move(model));
    }
    check_threads_are(threads);
    return 0;
}
