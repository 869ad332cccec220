/* What the tests do again and again with a model. */
#ifndef TIDEMILL_TESTS_MODEL_H
#define TIDEMILL_TESTS_MODEL_H

#include "check.h"
#include "json.h"

/* The demo model's. */
#define VOCABULARY 8192
#define CONTEXT 1024
#define ROOM 8192
#define STORY "Once upon a time"

/* All that the tests open has these options; `more` begins with a comma. */
#define OPTIONS_WITH(more)                                                                                           \
    "{\"device\":\"cpu\",\"threads\":2,\"context\":1024,\"memory_bytes\":734003200" more "}"
#define OPTIONS OPTIONS_WITH("")

static inline tidemill_model *open_model(const char *path, const char *options) {
    tidemill_model *model = NULL;
    char *error;
    OK(tidemill_model_open(path, options, NULL, NULL, NULL, &model, &error));
    CHECK(model != NULL);
    return model;
}

static inline tidemill_session *new_session(tidemill_model *model) {
    tidemill_session *session = NULL;
    char *error;
    OK(tidemill_session_new(model, &session, &error));
    CHECK(session != NULL);
    return session;
}

/* The ids of a text as `run --raw` makes them. */
static inline size_t ids_of(const tidemill_model *model, const char *text, uint32_t *ids, size_t room) {
    size_t count = 0;
    char *error;
    OK(tidemill_tokenize(model, text, strlen(text), TIDEMILL_TOKENIZE_DOCUMENT | TIDEMILL_TOKENIZE_SPECIALS, ids, room,
                         &count, &error));
    CHECK(count > 0 && count <= room);
    return count;
}

/* Ids without meaning, so that a prompt of any length can be made. */
static inline void some_ids(uint32_t *ids, size_t count, uint32_t seed) {
    size_t at;
    for (at = 0; at < count; at++) {
        seed = seed * 1664525u + 1013904223u;
        ids[at] = 1000 + (seed >> 8) % 6000;
    }
}

static inline int session_is(const tidemill_session *session, const uint32_t *ids, size_t count) {
    uint32_t held[ROOM];
    size_t length = 0;
    char *error;
    OK(tidemill_session_tokens(session, held, ROOM, &length, &error));
    CHECK(length == tidemill_session_length(session));
    return length == count && memcmp(held, ids, count * sizeof *ids) == 0;
}

static inline uint32_t argmax(const float *logits, size_t count) {
    size_t best = 0, at;
    for (at = 1; at < count; at++) {
        best = logits[at] > logits[best] ? at : best;
    }
    return (uint32_t)best;
}

/* A result's "tokens". */
static inline size_t result_ids(const char *result, uint32_t *ids, size_t room) {
    const char *tokens = json_member(result, "tokens");
    CHECK(tokens != NULL);
    return json_ids(tokens, ids, room);
}

/* Generates, and keeps the tokens. */
static inline size_t generate_ids(tidemill_session *session, const char *request, uint32_t *ids, size_t room) {
    char *result = NULL, *error;
    size_t count;
    OK(tidemill_generate(session, request, NULL, NULL, NULL, &result, &error));
    count = result_ids(result, ids, room);
    tidemill_string_free(result);
    return count;
}

/* A request for a greedy continuation. The caller frees it. */
static inline char *greedy_request(const uint32_t *prompt, size_t count, int max_tokens) {
    char *ids = json_of_ids(prompt, count);
    char *request = format("{\"tokens\":%s,\"temperature\":0,\"max_tokens\":%d}", ids, max_tokens);
    free(ids);
    return request;
}

#endif
