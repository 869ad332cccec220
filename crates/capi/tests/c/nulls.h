/* NULL where it is a mistake, for every function, with and without a place for the error. */
#ifndef TIDEMILL_TESTS_NULLS_H
#define TIDEMILL_TESTS_NULLS_H

#include "model.h"

/* The error is the last argument of all. */
#define NULLED(function, ...)                                                                                        \
    do {                                                                                                             \
        REFUSED(function(__VA_ARGS__, &error));                                                                      \
        CHECK(function(__VA_ARGS__, NULL) == TIDEMILL_INVALID_REQUEST);                                              \
    } while (0)

/* Where handles and texts point before a call that must not write them. */
static char nulls_unset[1];
#define UNSET nulls_unset

static inline void nulls_of_models(const char *path, tidemill_model *model) {
    tidemill_model *opened = (tidemill_model *)(void *)UNSET;
    tidemill_session *session = (tidemill_session *)(void *)UNSET;
    tidemill_sampler *sampler = (tidemill_sampler *)(void *)UNSET;
    size_t layers = 7, experts = 7;
    char *json = UNSET, *error;
    NULLED(tidemill_plan, NULL, OPTIONS, &json);
    NULLED(tidemill_plan, path, OPTIONS, NULL);
    NULLED(tidemill_model_open, NULL, OPTIONS, NULL, NULL, NULL, &opened);
    CHECK(opened == NULL);
    NULLED(tidemill_model_open, path, OPTIONS, NULL, NULL, NULL, NULL);
    NULLED(tidemill_model_info, NULL, &json);
    NULLED(tidemill_model_info, model, NULL);
    NULLED(tidemill_model_stats, NULL, 0, &json);
    NULLED(tidemill_model_stats, model, 0, NULL);
    NULLED(tidemill_model_heat, NULL, NULL, 0, &layers, &experts);
    NULLED(tidemill_model_heat, model, NULL, 0, NULL, &experts);
    NULLED(tidemill_model_heat, model, NULL, 0, &layers, NULL);
    CHECK(layers == 7 && experts == 7);
    NULLED(tidemill_model_heat, model, NULL, 256, &layers, &experts);
    NULLED(tidemill_session_new, NULL, &session);
    CHECK(session == NULL);
    NULLED(tidemill_session_new, model, NULL);
    NULLED(tidemill_sampler_new, NULL, NULL, &sampler);
    CHECK(sampler == NULL);
    NULLED(tidemill_sampler_new, model, NULL, NULL);
    CHECK(json == UNSET);
}

static inline void nulls_of_texts(const tidemill_model *model) {
    static const char request[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}";
    uint32_t ids[64] = {7};
    char text[8] = "seven";
    size_t count = 7;
    char *error;
    NULLED(tidemill_tokenize, NULL, "a", 1, 0, ids, 64, &count);
    NULLED(tidemill_tokenize, model, NULL, 1, 0, ids, 64, &count);
    NULLED(tidemill_tokenize, model, "a", 1, 0, ids, 64, NULL);
    NULLED(tidemill_detokenize, NULL, ids, 1, 0, text, 8, &count);
    NULLED(tidemill_detokenize, model, NULL, 1, 0, text, 8, &count);
    NULLED(tidemill_detokenize, model, ids, 1, 0, text, 8, NULL);
    NULLED(tidemill_chat_prompt, NULL, request, ids, 64, &count);
    NULLED(tidemill_chat_prompt, model, NULL, ids, 64, &count);
    NULLED(tidemill_chat_prompt, model, request, ids, 64, NULL);
    CHECK(count == 7 && ids[0] == 7 && strcmp(text, "seven") == 0);
    NULLED(tidemill_tokenize, model, "a", 1, 0, NULL, 64, &count);
    NULLED(tidemill_detokenize, model, ids, 1, 0, NULL, 8, &count);
    NULLED(tidemill_chat_prompt, model, request, NULL, 64, &count);
}

static inline void nulls_of_sessions(tidemill_session *session) {
    static const uint32_t ids[] = {1000, 1001};
    uint32_t held[64] = {7}, best[2] = {7, 7};
    float values[2] = {7, 7};
    size_t count = 7, before = tidemill_session_length(session);
    char *error;
    CHECK(tidemill_session_length(NULL) == 0);
    NULLED(tidemill_session_tokens, NULL, held, 64, &count);
    NULLED(tidemill_session_tokens, session, held, 64, NULL);
    NULLED(tidemill_session_sync, NULL, ids, 2, NULL, NULL, NULL, &count);
    NULLED(tidemill_session_sync, session, NULL, 2, NULL, NULL, NULL, &count);
    NULLED(tidemill_session_append, NULL, ids, 2, NULL, NULL, NULL);
    NULLED(tidemill_session_append, session, NULL, 2, NULL, NULL, NULL);
    NULLED(tidemill_session_score, NULL, ids, 2, values, best, NULL, NULL, NULL);
    NULLED(tidemill_session_score, session, NULL, 2, values, best, NULL, NULL, NULL);
    NULLED(tidemill_session_score, session, ids, 2, NULL, best, NULL, NULL, NULL);
    NULLED(tidemill_session_truncate, NULL, 0);
    NULLED(tidemill_session_logits, NULL, values, 2, &count);
    NULLED(tidemill_session_logits, session, values, 2, NULL);
    NULLED(tidemill_session_save, NULL, "state");
    NULLED(tidemill_session_save, session, NULL);
    NULLED(tidemill_session_load, NULL, "state");
    CHECK(count == 7 && held[0] == 7 && best[0] == 7 && values[0] == 7);
    CHECK(tidemill_session_length(session) == before);
}

static inline void nulls_of_choices(tidemill_model *model, tidemill_session *session, tidemill_sampler *sampler) {
    static const char *const requests[] = {"{\"prompt\":\"a\"}"};
    static const float logits[] = {0, 1};
    static const uint32_t history[] = {1};
    size_t before = tidemill_session_length(session);
    uint32_t token = 7;
    char *json = UNSET, *error;
    NULLED(tidemill_sampler_sample, NULL, session, &token);
    NULLED(tidemill_sampler_sample, sampler, NULL, &token);
    NULLED(tidemill_sampler_sample, sampler, session, NULL);
    NULLED(tidemill_sampler_sample_logits, NULL, logits, 2, history, 1, &token);
    NULLED(tidemill_sampler_sample_logits, sampler, NULL, 2, history, 1, &token);
    NULLED(tidemill_sampler_sample_logits, sampler, logits, 2, NULL, 1, &token);
    NULLED(tidemill_sampler_sample_logits, sampler, logits, 2, history, 1, NULL);
    NULLED(tidemill_generate, NULL, requests[0], NULL, NULL, NULL, &json);
    NULLED(tidemill_generate, session, NULL, NULL, NULL, NULL, &json);
    NULLED(tidemill_generate, session, requests[0], NULL, NULL, NULL, NULL);
    NULLED(tidemill_batch, NULL, requests, 1, NULL, NULL, NULL);
    NULLED(tidemill_batch, model, NULL, 1, NULL, NULL, NULL);
    CHECK(token == 7 && json == UNSET && tidemill_session_length(session) == before);
}

static inline void nulls_are_freed(void) {
    tidemill_string_free(NULL);
    tidemill_cancel_set(NULL);
    tidemill_cancel_free(NULL);
    tidemill_model_free(NULL);
    tidemill_session_free(NULL);
    tidemill_sampler_free(NULL);
}

#endif
