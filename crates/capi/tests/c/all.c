/* Every function once, used as it should be. all MODEL SCRATCH */
#include "events.h"

#include <ctype.h>
#include <math.h>

/* What logits may differ by where they were computed in other pieces. */
#define CLOSE 0.05f

static struct heard heard; /* large, and used by one thread */

static struct heard *listen(size_t stop_at) {
    memset(&heard, 0, sizeof heard);
    heard.stop_at = stop_at;
    return &heard;
}

static void check_versions(void) {
    static const tidemill_status known[] = {
        TIDEMILL_OK,     TIDEMILL_INTERNAL,     TIDEMILL_INVALID_REQUEST, TIDEMILL_NOT_FOUND, TIDEMILL_CORRUPT,
        TIDEMILL_IO,     TIDEMILL_UNSUPPORTED,  TIDEMILL_MEMORY,          TIDEMILL_DEVICE,    TIDEMILL_BUSY,
        TIDEMILL_CANCELLED, TIDEMILL_CONTEXT_FULL, TIDEMILL_TOO_SMALL,
    };
    size_t count = sizeof known / sizeof *known, at, other;
    CHECK(tidemill_abi_version() == TIDEMILL_ABI_VERSION);
    CHECK(isdigit((unsigned char)tidemill_version()[0]) && strchr(tidemill_version(), '(') != NULL);
    for (at = 0; at < count; at++) {
        CHECK(tidemill_status_name(known[at])[0] != '\0');
        for (other = 0; other < at; other++) {
            CHECK(strcmp(tidemill_status_name(known[at]), tidemill_status_name(known[other])) != 0);
        }
    }
    CHECK(tidemill_status_name(-7) != NULL && tidemill_status_name(4711) != NULL);
}

struct shown {
    size_t calls;
    double done, total;
};

static int32_t show(void *user, double done, double total) {
    struct shown *shown = (struct shown *)user;
    CHECK(done >= shown->done && done <= total);
    shown->calls++;
    shown->done = done;
    shown->total = total;
    return 0;
}

static void check_info(const tidemill_model *model) {
    const char *ends;
    char *info = NULL, *error;
    OK(tidemill_model_info(model, &info, &error));
    CHECK(json_is(json_member(info, "architecture"), "\"qwen3_5_moe\""));
    CHECK(json_number(json_member(info, "vocab_size")) == VOCABULARY);
    CHECK(json_number(json_member(info, "context")) == CONTEXT);
    ends = json_member(info, "end_tokens");
    CHECK(json_count(ends) == 2 && json_number(json_item(ends, 0)) + json_number(json_item(ends, 1)) == 2);
    CHECK(json_member(info, "device") != NULL && json_member(info, "device")[0] == '"');
    CHECK(json_member(info, "plan") != NULL && json_member(info, "plan")[0] == '{');
    CHECK(json_is(json_member(info, "lossy"), "false"));
    CHECK(json_member(info, "notes") != NULL && json_member(info, "notes")[0] == '[');
    CHECK(json_member(info, "fingerprint") != NULL);
    tidemill_string_free(info);
}

static tidemill_model *check_open(const char *path) {
    struct shown shown = {0, 0, 0};
    tidemill_cancel *cancel = tidemill_cancel_new();
    tidemill_model *model = NULL;
    char *plan = NULL, *error;
    double floor_bytes;
    CHECK(cancel != NULL);
    OK(tidemill_plan(path, OPTIONS, &plan, &error));
    floor_bytes = json_number(json_member(plan, "floor_bytes"));
    CHECK(json_is(json_member(plan, "fits"), "true") && floor_bytes > 0 && floor_bytes < 734003200);
    tidemill_string_free(plan);
    plan = NULL;
    OK(tidemill_plan(path, NULL, &plan, &error));
    tidemill_string_free(plan);
    OK(tidemill_model_open(path, OPTIONS, show, &shown, cancel, &model, &error));
    CHECK(model != NULL && shown.calls > 0 && shown.done > 0);
    tidemill_cancel_free(cancel);
    check_info(model);
    return model;
}

/* What a model said of its drive is taken back, where it said anything. */
static void check_drive(const char *path, const tidemill_model *model) {
    const char *drive;
    char *info = NULL, *options, *error;
    OK(tidemill_model_info(model, &info, &error));
    drive = json_member(info, "drive");
    if (drive != NULL && *drive == '{') {
        options = format(OPTIONS_WITH(",\"drive\":%.*s"), (int)(json_after(drive) - drive), drive);
        tidemill_model_free(open_model(path, options));
        free(options);
    }
    tidemill_string_free(info);
}

static void check_texts(const tidemill_model *model) {
    static const char text[] = "Hello\0world, \xc3\xa9 \xe6\xbc\xa2\xe5\xad\x97 \xf0\x9f\x99\x82!";
    const size_t bytes = sizeof text - 1;
    uint32_t ids[ROOM], end = 0;
    char back[64], shown[64];
    size_t count = 0, needed = 0, length = 0;
    char *error;
    OK(tidemill_tokenize(model, text, bytes, 0, NULL, 0, &needed, &error));
    CHECK(needed > 5 && needed <= bytes);
    memset(ids, 0xff, sizeof ids);
    GIVES(TIDEMILL_TOO_SMALL, tidemill_tokenize(model, text, bytes, 0, ids, needed - 1, &count, &error));
    CHECK(count == needed && ids[0] == UINT32_MAX);
    count = 0;
    GIVES(TIDEMILL_TOO_SMALL, tidemill_tokenize(model, text, bytes, 0, ids, 0, &count, &error));
    CHECK(count == needed && ids[0] == UINT32_MAX);
    OK(tidemill_tokenize(model, text, bytes, 0, ids, needed, &count, &error));
    CHECK(count == needed && ids[needed] == UINT32_MAX && ids[needed - 1] < VOCABULARY);
    OK(tidemill_detokenize(model, ids, count, 0, NULL, 0, &length, &error));
    CHECK(length == bytes);
    memset(back, '#', sizeof back);
    GIVES(TIDEMILL_TOO_SMALL, tidemill_detokenize(model, ids, count, 0, back, bytes - 1, &length, &error));
    CHECK(length == bytes && back[0] == '#');
    OK(tidemill_detokenize(model, ids, count, 0, back, bytes, &length, &error));
    CHECK(length == bytes && memcmp(back, text, bytes) == 0 && back[bytes] == '#');
    OK(tidemill_tokenize(model, "", 0, 0, NULL, 0, &count, &error));
    CHECK(count == 0);
    OK(tidemill_tokenize(model, "<|im_end|>", 10, TIDEMILL_TOKENIZE_SPECIALS, &end, 1, &count, &error));
    CHECK(count == 1 && end == 2);
    OK(tidemill_tokenize(model, "<|im_end|>", 10, 0, NULL, 0, &count, &error));
    CHECK(count > 1);
    OK(tidemill_detokenize(model, &end, 1, 0, shown, sizeof shown, &length, &error));
    CHECK(length == 0);
    OK(tidemill_detokenize(model, &end, 1, TIDEMILL_DETOKENIZE_SPECIALS, shown, sizeof shown, &length, &error));
    CHECK(length == 10 && memcmp(shown, "<|im_end|>", 10) == 0);
}

static void read_logits(tidemill_session *session, float *logits) {
    size_t count = 0;
    char *error;
    OK(tidemill_session_logits(session, NULL, 0, &count, &error));
    CHECK(count == VOCABULARY);
    count = 0;
    OK(tidemill_session_logits(session, logits, VOCABULARY, &count, &error));
    CHECK(count == VOCABULARY);
}

static int are_close(const float *one, const float *other) {
    size_t at;
    for (at = 0; at < VOCABULARY; at++) {
        if (!(fabsf(one[at] - other[at]) <= CLOSE)) {
            return 0;
        }
    }
    return argmax(one, VOCABULARY) == argmax(other, VOCABULARY);
}

static void check_sequences(tidemill_model *model, const char *scratch) {
    static float whole[VOCABULARY], pieces[VOCABULARY];
    char *state = format("%s/all.state", scratch), *error;
    tidemill_session *one = new_session(model), *other = new_session(model);
    struct shown shown = {0, 0, 0};
    uint32_t ids[64];
    size_t reused = 99, at;
    some_ids(ids, 64, 1);
    CHECK(tidemill_session_length(one) == 0 && session_is(one, ids, 0));
    OK(tidemill_session_sync(one, ids, 40, show, &shown, NULL, &reused, &error));
    CHECK(reused == 0 && shown.calls > 0 && session_is(one, ids, 40));
    read_logits(one, whole);
    for (at = 0; at < 40; at += 8) {
        OK(tidemill_session_append(other, ids + at, 8, NULL, NULL, NULL, &error));
    }
    CHECK(session_is(other, ids, 40));
    read_logits(other, pieces);
    CHECK(are_close(whole, pieces));
    GIVES(TIDEMILL_TOO_SMALL, tidemill_session_logits(one, pieces, VOCABULARY - 1, &at, &error));
    CHECK(at == VOCABULARY);
    GIVES(TIDEMILL_TOO_SMALL, tidemill_session_tokens(one, ids, 39, &at, &error));
    CHECK(at == 40);
    OK(tidemill_session_sync(other, ids, 64, NULL, NULL, NULL, &reused, &error));
    CHECK(reused == 40 && session_is(other, ids, 64));
    OK(tidemill_session_truncate(other, 40, &error));
    CHECK(session_is(other, ids, 40));
    read_logits(other, pieces);
    CHECK(are_close(whole, pieces));
    OK(tidemill_session_save(one, state, &error));
    OK(tidemill_session_truncate(other, 0, &error));
    CHECK(tidemill_session_length(other) == 0);
    OK(tidemill_session_load(other, state, &error));
    CHECK(session_is(other, ids, 40));
    read_logits(other, pieces);
    CHECK(are_close(whole, pieces));
    OK(tidemill_session_sync(other, ids, 0, NULL, NULL, NULL, NULL, &error));
    CHECK(tidemill_session_length(other) == 0);
    tidemill_session_free(one);
    tidemill_session_free(other);
    remove(state);
    free(state);
}

/* The natural log-probability of a token. */
static float logprob(const float *logits, uint32_t token) {
    double sum = 0, most = logits[argmax(logits, VOCABULARY)];
    size_t at;
    for (at = 0; at < VOCABULARY; at++) {
        sum += exp(logits[at] - most);
    }
    return (float)(logits[token] - most - log(sum));
}

static void check_scores(tidemill_model *model) {
    static float logits[VOCABULARY];
    tidemill_session *scored = new_session(model), *plain = new_session(model);
    uint32_t ids[64], best[64];
    float scores[64];
    size_t count = ids_of(model, "Once upon a time there was a little girl", ids, 64), at;
    char *error;
    OK(tidemill_session_score(scored, ids, count, scores, best, NULL, NULL, NULL, &error));
    CHECK(session_is(scored, ids, count) && scores[0] != scores[0] && best[0] == UINT32_MAX);
    for (at = 1; at < count; at++) {
        OK(tidemill_session_sync(plain, ids, at, NULL, NULL, NULL, NULL, &error));
        read_logits(plain, logits);
        CHECK(scores[at] <= 0 && fabsf(scores[at] - logprob(logits, ids[at])) < CLOSE);
        CHECK(logits[argmax(logits, VOCABULARY)] - logits[best[at]] < CLOSE);
    }
    OK(tidemill_session_score(plain, ids + count - 1, 1, scores, NULL, NULL, NULL, NULL, &error));
    CHECK(scores[0] <= 0 && session_is(plain, ids, count));
    tidemill_session_free(scored);
    tidemill_session_free(plain);
}

static void check_samplers(tidemill_model *model) {
    static float logits[VOCABULARY];
    static const float three[] = {0.5f, 2.0f, 1.9f};
    static const uint32_t seen[] = {1};
    static const char *const options[] = {"{\"temperature\":0}", "{\"temperature\":1,\"seed\":5}",
                                          "{\"temperature\":1,\"seed\":5}",
                                          "{\"temperature\":0,\"repetition_penalty\":2,\"logit_bias\":{\"0\":-1}}"};
    tidemill_session *session = new_session(model);
    tidemill_sampler *samplers[4];
    uint32_t ids[64], token = 0, twin = 0;
    size_t count = ids_of(model, STORY, ids, 64), at, length;
    char *error;
    for (at = 0; at < 4; at++) {
        samplers[at] = NULL;
        OK(tidemill_sampler_new(model, options[at], &samplers[at], &error));
        CHECK(samplers[at] != NULL);
    }
    OK(tidemill_session_sync(session, ids, count, NULL, NULL, NULL, NULL, &error));
    for (at = 0; at < 8; at++) {
        length = tidemill_session_length(session);
        read_logits(session, logits);
        OK(tidemill_sampler_sample(samplers[0], session, &token, &error));
        CHECK(token == argmax(logits, VOCABULARY) && tidemill_session_length(session) == length);
        OK(tidemill_sampler_sample_logits(samplers[0], logits, VOCABULARY, ids, count, &twin, &error));
        CHECK(twin == token);
        OK(tidemill_sampler_sample(samplers[1], session, &token, &error));
        OK(tidemill_sampler_sample(samplers[2], session, &twin, &error));
        CHECK(token == twin);
        OK(tidemill_session_append(session, &token, 1, NULL, NULL, NULL, &error));
    }
    OK(tidemill_sampler_sample_logits(samplers[0], three, 3, seen, 1, &token, &error));
    CHECK(token == 1);
    OK(tidemill_sampler_sample_logits(samplers[3], three, 3, seen, 1, &token, &error));
    CHECK(token == 2);
    OK(tidemill_sampler_sample_logits(samplers[0], three, 1, seen, 0, &token, &error));
    CHECK(token == 0);
    for (at = 0; at < 4; at++) {
        tidemill_sampler_free(samplers[at]);
    }
    OK(tidemill_sampler_new(model, NULL, &samplers[0], &error));
    tidemill_sampler_free(samplers[0]);
    tidemill_session_free(session);
}

/* A loop of one's own makes what `generate` makes. */
static void check_own_loop(tidemill_model *model, const uint32_t *prompt, size_t count, const uint32_t *answer,
                           size_t answered) {
    static float logits[VOCABULARY];
    tidemill_session *session = new_session(model);
    uint32_t token;
    size_t at;
    char *error;
    OK(tidemill_session_sync(session, prompt, count, NULL, NULL, NULL, NULL, &error));
    for (at = 0; at < answered; at++) {
        read_logits(session, logits);
        token = argmax(logits, VOCABULARY);
        CHECK(token == answer[at]);
        OK(tidemill_session_append(session, &token, 1, NULL, NULL, NULL, &error));
    }
    tidemill_session_free(session);
}

/* A word of the answer as its stop text. */
static void check_stop(tidemill_session *session, const char *text) {
    const char *word = text + strlen(text) / 2;
    char *found, *request, *result = NULL, *stopped, *error;
    size_t length = 0;
    while (*word != '\0' && (length = strspn(word, "abcdefghijklmnopqrstuvwxyz")) < 4) {
        word += length > 0 ? length : 1;
    }
    CHECK(length >= 4);
    found = format("%.*s", (int)length, word);
    word = strstr(text, found); /* where it comes first */
    free(found);
    request = format("{\"prompt\":\"" STORY "\",\"temperature\":0,\"max_tokens\":32,\"stop\":[\"%.*s\"]}", (int)length,
                     word);
    OK(tidemill_generate(session, request, NULL, NULL, NULL, &result, &error));
    stopped = json_text(json_member(result, "text"));
    CHECK(stopped != NULL && strlen(stopped) == (size_t)(word - text) && strncmp(stopped, text, strlen(stopped)) == 0);
    CHECK(json_is(json_member(result, "finish_reason"), "\"stop\""));
    free(stopped);
    free(request);
    tidemill_string_free(result);
}

static void check_generate(tidemill_model *model) {
    static const char request[] = "{\"prompt\":\"" STORY "\",\"temperature\":0,\"max_tokens\":32,\"ignore_eos\":true}";
    tidemill_session *session = new_session(model);
    uint32_t prompt[64], held[128], first[64], second[64];
    size_t count = ids_of(model, STORY, prompt, 64), length = 0;
    char *result = NULL, *same, *text, *error;
    OK(tidemill_generate(session, request, hear, listen(0), NULL, &result, &error));
    CHECK(heard_is(&heard, result) && heard.texts > 0 && heard.prompts > 0 && heard.calls == 0);
    CHECK(result_ids(result, first, 64) == 32 && json_number(json_member(result, "answer_tokens")) == 32);
    CHECK(json_number(json_member(result, "prompt_tokens")) == (double)count);
    CHECK(json_is(json_member(result, "finish_reason"), "\"length\""));
    text = json_text(json_member(result, "text"));
    tidemill_string_free(result);
    OK(tidemill_session_tokens(session, held, 128, &length, &error));
    CHECK(length >= count + 31 && length <= count + 32 && memcmp(held, prompt, count * sizeof *held) == 0);
    CHECK(memcmp(held + count, first, (length - count) * sizeof *held) == 0);
    same = greedy_request(prompt, count, 32);
    CHECK(generate_ids(session, same, second, 64) == 32 && memcmp(first, second, sizeof *first * 32) == 0);
    check_own_loop(model, prompt, count, first, 32);
    check_stop(session, text);
    /* Stopped by the callback: what was made is there, and the session goes on. */
    result = NULL;
    GIVES(TIDEMILL_CANCELLED, tidemill_generate(session, request, hear, listen(3), NULL, &result, &error));
    CHECK(result != NULL && heard_is(&heard, result) && strncmp(heard.text, text, heard.text_bytes) == 0);
    length = result_ids(result, second, 64);
    CHECK(length > 0 && length < 32 && memcmp(first, second, sizeof *first * length) == 0);
    tidemill_string_free(result);
    CHECK(generate_ids(session, request, second, 64) == 32 && memcmp(first, second, sizeof *first * 32) == 0);
    free(text);
    free(same);
    tidemill_session_free(session);
}

#define ASK "\"messages\":[{\"role\":\"user\",\"content\":\"What is your name?\"}],\"temperature\":0"

static void check_messages(tidemill_model *model) {
    static const char request[] = "{" ASK ",\"max_tokens\":24,\"think\":false}";
    static const char form[] =
        "{" ASK ",\"max_tokens\":64,\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"pick\","
        "\"schema\":{\"type\":\"object\",\"properties\":{\"colour\":{\"enum\":[\"red\",\"green\"]}},"
        "\"required\":[\"colour\"],\"additionalProperties\":false}}}}";
    tidemill_session *session = new_session(model);
    uint32_t prompt[256], first[64], second[64];
    size_t needed = 0, count = 0, answered;
    char *result = NULL, *text, *same, *error;
    OK(tidemill_chat_prompt(model, request, NULL, 0, &needed, &error));
    CHECK(needed > 5 && needed < 256);
    GIVES(TIDEMILL_TOO_SMALL, tidemill_chat_prompt(model, request, prompt, needed - 1, &count, &error));
    CHECK(count == needed);
    OK(tidemill_chat_prompt(model, request, prompt, needed, &count, &error));
    CHECK(count == needed);
    OK(tidemill_generate(session, request, hear, listen(0), NULL, &result, &error));
    CHECK(heard_is(&heard, result) && json_number(json_member(result, "prompt_tokens")) == (double)count);
    answered = result_ids(result, first, 64);
    tidemill_string_free(result);
    same = greedy_request(prompt, count, 24);
    CHECK(answered > 0 && generate_ids(session, same, second, 64) == answered);
    CHECK(memcmp(first, second, sizeof *first * answered) == 0);
    free(same);
    result = NULL;
    OK(tidemill_generate(session, form, NULL, NULL, NULL, &result, &error));
    text = json_text(json_member(result, "text"));
    CHECK(json_is(json_member(text, "colour"), "\"red\"") || json_is(json_member(text, "colour"), "\"green\""));
    free(text);
    tidemill_string_free(result);
    tidemill_session_free(session);
}

static void check_tools(tidemill_model *model) {
    static const char request[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"Get the weather in Lisbon with days 3.\"}],\"temperature\":0,"
        "\"max_tokens\":200,\"tool_choice\":\"required\",\"tools\":[{\"type\":\"function\",\"function\":{"
        "\"name\":\"get_weather\",\"description\":\"Get the weather\",\"parameters\":{\"type\":\"object\","
        "\"properties\":{\"city\":{\"type\":\"string\"},\"days\":{\"type\":\"integer\"}},\"required\":[\"city\"]}}}]}";
    tidemill_session *session = new_session(model);
    const char *call;
    char *result = NULL, *arguments, *error;
    OK(tidemill_generate(session, request, hear, listen(0), NULL, &result, &error));
    CHECK(heard.calls == 1 && heard.malformed == 0 && heard_is(&heard, result));
    CHECK(json_is(json_member(result, "finish_reason"), "\"tool_calls\""));
    CHECK(json_count(json_member(result, "tool_calls")) == 1);
    CHECK(json_is(json_member(heard.call, "type"), "\"function\"") && json_member(heard.call, "id") != NULL);
    call = json_member(heard.call, "function");
    CHECK(json_is(json_member(call, "name"), "\"get_weather\""));
    arguments = json_text(json_member(call, "arguments"));
    CHECK(arguments != NULL && json_is(json_member(arguments, "city"), "\"Lisbon\""));
    free(arguments);
    call = json_member(json_item(json_member(result, "tool_calls"), 0), "function");
    CHECK(json_is(json_member(call, "name"), "\"get_weather\""));
    tidemill_string_free(result);
    tidemill_session_free(session);
}

struct replies {
    size_t count, stop_at;
    size_t times[3];
    tidemill_status statuses[3];
    uint32_t ids[3][64];
    size_t answered[3];
};

static int32_t reply(void *user, size_t index, tidemill_status status, const char *result) {
    struct replies *replies = (struct replies *)user;
    CHECK(index < 3 && result != NULL);
    replies->count++;
    replies->times[index]++;
    replies->statuses[index] = status;
    if (status == TIDEMILL_OK) {
        replies->answered[index] = result_ids(result, replies->ids[index], 64);
    } else {
        const char *error = json_member(result, "error");
        CHECK(json_member(error, "code") != NULL && json_member(error, "message") != NULL);
    }
    return replies->stop_at > 0 && replies->count >= replies->stop_at;
}

static void check_batch(tidemill_model *model) {
    static const char *const requests[] = {
        "{\"prompt\":\"" STORY "\",\"temperature\":0,\"max_tokens\":16}",
        "{\"prompt\":\"" STORY "\",\"temprature\":0}",
        "{" ASK ",\"max_tokens\":16}",
    };
    static struct replies replies; /* all zero */
    tidemill_session *session = new_session(model);
    uint32_t alone[64];
    size_t at;
    char *error;
    OK(tidemill_batch(model, requests, 3, reply, &replies, NULL, &error));
    for (at = 0; at < 3; at++) {
        CHECK(replies.times[at] == 1);
        CHECK(replies.statuses[at] == (at == 1 ? TIDEMILL_INVALID_REQUEST : TIDEMILL_OK));
        if (at != 1) {
            CHECK(generate_ids(session, requests[at], alone, 64) == replies.answered[at]);
            CHECK(memcmp(alone, replies.ids[at], replies.answered[at] * sizeof *alone) == 0);
        }
    }
    OK(tidemill_batch(model, requests, 3, NULL, NULL, NULL, &error));
    replies.count = 0;
    replies.stop_at = 1;
    GIVES(TIDEMILL_CANCELLED, tidemill_batch(model, requests, 3, reply, &replies, NULL, &error));
    CHECK(replies.count >= 1);
    tidemill_session_free(session);
}

static void check_counts(const tidemill_model *model) {
    static uint64_t uses[4096];
    uint64_t sum = 0;
    size_t layers = 0, experts = 0, at;
    char *stats = NULL, *error;
    OK(tidemill_model_heat(model, NULL, 0, &layers, &experts, &error));
    CHECK(layers == 8 && experts == 32);
    GIVES(TIDEMILL_TOO_SMALL, tidemill_model_heat(model, uses, 255, &layers, &experts, &error));
    CHECK(layers == 8 && experts == 32 && uses[0] == 0 && uses[254] == 0);
    OK(tidemill_model_heat(model, uses, 256, &layers, &experts, &error));
    for (at = 0; at < layers * experts; at++) {
        sum += uses[at];
    }
    CHECK(sum > 1000);
    OK(tidemill_model_stats(model, 1, &stats, &error));
    CHECK(stats[0] == '{');
    tidemill_string_free(stats);
    stats = NULL;
    OK(tidemill_model_stats(model, 0, &stats, &error));
    CHECK(stats[0] == '{');
    tidemill_string_free(stats);
}

/* What was made of a model outlives its handle. */
static void check_outliving(tidemill_model *model) {
    tidemill_session *session = new_session(model);
    tidemill_sampler *sampler = NULL;
    uint32_t ids[64], token = UINT32_MAX;
    size_t count = ids_of(model, STORY, ids, 64);
    char *error;
    OK(tidemill_sampler_new(model, "{\"temperature\":0}", &sampler, &error));
    tidemill_model_free(model);
    OK(tidemill_session_sync(session, ids, count, NULL, NULL, NULL, NULL, &error));
    OK(tidemill_sampler_sample(sampler, session, &token, &error));
    CHECK(token < VOCABULARY);
    tidemill_session_free(session);
    tidemill_sampler_free(sampler);
}

int main(int count, char **arguments) {
    size_t threads = threads_now();
    tidemill_model *model;
    CHECK(count >= 3);
    check_versions();
    model = check_open(arguments[1]);
    check_drive(arguments[1], model);
    check_texts(model);
    check_sequences(model, arguments[2]);
    check_scores(model);
    check_samplers(model);
    check_generate(model);
    check_messages(model);
    check_tools(model);
    check_batch(model);
    check_counts(model);
    check_outliving(model);
    check_threads_are(threads);
    return 0;
}
