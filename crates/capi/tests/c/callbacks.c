/* What callbacks may do, what an answer leaves in its session, raw prompts, and two batches at once.
   callbacks MODEL SCRATCH */
#include <pthread.h>

#include "model.h"

struct inner {
    tidemill_model *model;
    tidemill_session *other;
    size_t calls;
};

/* Within a computation nothing can be computed, and nothing hangs. */
static int32_t call_in(void *user, double done, double total) {
    struct inner *inner = (struct inner *)user;
    uint32_t ids[16], one = 42;
    size_t count = 0;
    char *json = NULL, *error;
    (void)done;
    (void)total;
    if (inner->calls++ > 0) {
        return 0;
    }
    GIVES(TIDEMILL_BUSY, tidemill_model_stats(inner->model, 0, &json, &error));
    GIVES(TIDEMILL_BUSY, tidemill_session_append(inner->other, &one, 1, NULL, NULL, NULL, &error));
    GIVES(TIDEMILL_BUSY, tidemill_session_truncate(inner->other, 0, &error));
    OK(tidemill_model_info(inner->model, &json, &error));
    tidemill_string_free(json);
    OK(tidemill_tokenize(inner->model, "a", 1, 0, ids, 16, &count, &error));
    tidemill_session_free(inner->other);
    return 0;
}

static void check_calls_within(tidemill_model *model) {
    struct inner inner;
    tidemill_session *session = new_session(model);
    uint32_t ids[300];
    char *error, *json = NULL;
    inner.model = model;
    inner.other = new_session(model);
    inner.calls = 0;
    some_ids(ids, 300, 5);
    OK(tidemill_session_sync(session, ids, 300, call_in, &inner, NULL, NULL, &error));
    CHECK(inner.calls > 0);
    OK(tidemill_model_stats(model, 0, &json, &error));
    tidemill_string_free(json);
    tidemill_session_free(session);
}

/* The session has all of the answer, also the token that ended it, and goes on from there. */
static void check_what_is_left(tidemill_model *model) {
    tidemill_session *session = new_session(model), *fresh = new_session(model);
    static float got[VOCABULARY], expected[VOCABULARY];
    uint32_t ids[64], more = 77;
    size_t count = 0;
    char *result = NULL, *error;
    OK(tidemill_generate(session, "{\"prompt\": \"" STORY "\", \"max_tokens\": 5, \"temperature\": 0}", NULL, NULL, NULL,
                         &result, &error));
    CHECK(json_count(json_member(result, "tokens")) == 5);
    OK(tidemill_session_tokens(session, ids, 64, &count, &error));
    CHECK(count == ids_of(model, STORY, ids + 32, 32) + 5);
    tidemill_string_free(result);
    OK(tidemill_session_append(session, &more, 1, NULL, NULL, NULL, &error));
    ids[count] = more;
    OK(tidemill_session_sync(fresh, ids, count + 1, NULL, NULL, NULL, NULL, &error));
    CHECK(session_is(session, ids, count + 1));
    OK(tidemill_session_logits(session, got, VOCABULARY, &count, &error));
    OK(tidemill_session_logits(fresh, expected, VOCABULARY, &count, &error));
    CHECK(memcmp(got, expected, sizeof got) == 0);
    tidemill_session_free(fresh);
    tidemill_session_free(session);
}

/* A prompt is what `run --raw` takes: a thought that it opens is one. */
static void check_raw(tidemill_model *model) {
    tidemill_session *session = new_session(model);
    char *result = NULL, *error;
    OK(tidemill_generate(session, "{\"prompt\": \"<think>\", \"max_tokens\": 5, \"temperature\": 0}", NULL, NULL, NULL,
                         &result, &error));
    CHECK(json_is(json_member(result, "text"), "\"\"") && json_member(result, "thinking")[0] == '"');
    tidemill_string_free(result);
    tidemill_session_free(session);
}

static int32_t count_good(void *user, size_t index, tidemill_status status, const char *result) {
    (void)index;
    (void)result;
    *(size_t *)user += status == TIDEMILL_OK;
    return 0;
}

static void *run_batch(void *model) {
    static const char *requests[8];
    size_t at, *good = (size_t *)calloc(1, sizeof *good);
    char *error;
    for (at = 0; at < 8; at++) {
        requests[at] = "{\"prompt\": \"" STORY "\", \"max_tokens\": 4}";
    }
    OK(tidemill_batch((tidemill_model *)model, requests, 8, count_good, good, NULL, &error));
    return good;
}

static void check_two_batches(tidemill_model *model) {
    pthread_t threads[2];
    void *good;
    size_t at;
    for (at = 0; at < 2; at++) {
        CHECK(pthread_create(&threads[at], NULL, run_batch, model) == 0);
    }
    for (at = 0; at < 2; at++) {
        CHECK(pthread_join(threads[at], &good) == 0);
        CHECK(*(size_t *)good == 8);
        free(good);
    }
}

int main(int argc, char **argv) {
    tidemill_model *model;
    CHECK(argc >= 3);
    model = open_model(argv[1], OPTIONS);
    check_calls_within(model);
    check_what_is_left(model);
    check_raw(model);
    check_two_batches(model);
    tidemill_model_free(model);
    return 0;
}
