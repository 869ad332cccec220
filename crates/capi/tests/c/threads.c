/* Threads, callbacks that call back, cancelling from elsewhere, forks.
   threads MODEL SCRATCH [TIMES] [BOUND_MS]: how often two threads are compared with one, and what a cancelled call may
   take; slow machinery such as valgrind needs a larger bound. */
#include "events.h"

#include <pthread.h>
#include <sys/wait.h>

/* A long prompt's model. */
#define LONG_CONTEXT 4096
#define LONG_OPTIONS "{\"device\":\"cpu\",\"threads\":2,\"context\":4096,\"memory_bytes\":734003200}"
#define LONG_PROMPT 4000

static double bound_s = 1.0;

static pthread_t start(void *(*work)(void *), void *with) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, work, with) == 0);
    return thread;
}

static void join(pthread_t thread) { CHECK(pthread_join(thread, NULL) == 0); }

/* A door that opens once. */
struct gate {
    pthread_mutex_t lock;
    pthread_cond_t change;
    int is_open;
};

static void gate_init(struct gate *gate) {
    CHECK(pthread_mutex_init(&gate->lock, NULL) == 0 && pthread_cond_init(&gate->change, NULL) == 0);
    gate->is_open = 0;
}

static void gate_open(struct gate *gate) {
    CHECK(pthread_mutex_lock(&gate->lock) == 0);
    gate->is_open = 1;
    CHECK(pthread_cond_broadcast(&gate->change) == 0 && pthread_mutex_unlock(&gate->lock) == 0);
}

static void gate_wait(struct gate *gate) {
    CHECK(pthread_mutex_lock(&gate->lock) == 0);
    while (!gate->is_open) {
        CHECK(pthread_cond_wait(&gate->change, &gate->lock) == 0);
    }
    CHECK(pthread_mutex_unlock(&gate->lock) == 0);
}

static void gate_end(struct gate *gate) {
    CHECK(pthread_cond_destroy(&gate->change) == 0 && pthread_mutex_destroy(&gate->lock) == 0);
}

/* ---- two sessions give what one gives alone ---- */

static const char *const twin_requests[] = {
    "{\"prompt\":\"" STORY "\",\"temperature\":0,\"max_tokens\":24,\"ignore_eos\":true}",
    "{\"messages\":[{\"role\":\"user\",\"content\":\"Tell me a story about a fox\"}],\"temperature\":0.8,\"seed\":7,"
    "\"max_tokens\":24,\"ignore_eos\":true}",
};

struct twin {
    tidemill_session *session;
    const char *request;
    uint32_t ids[64];
    size_t count;
};

static void *run_twin(void *with) {
    struct twin *twin = (struct twin *)with;
    char *error;
    OK(tidemill_session_truncate(twin->session, 0, &error));
    twin->count = generate_ids(twin->session, twin->request, twin->ids, 64);
    return NULL;
}

static void two_like_one(tidemill_model *model, long times) {
    struct twin alone[2], together[2];
    pthread_t threads[2];
    long time;
    int at;
    for (at = 0; at < 2; at++) {
        alone[at].session = new_session(model);
        alone[at].request = twin_requests[at];
        run_twin(&alone[at]);
        CHECK(alone[at].count == 24);
        together[at] = alone[at];
    }
    for (time = 0; time < times; time++) {
        for (at = 0; at < 2; at++) {
            threads[at] = start(run_twin, &together[at]);
        }
        for (at = 0; at < 2; at++) {
            join(threads[at]);
            CHECK(together[at].count == alone[at].count);
            CHECK(memcmp(together[at].ids, alone[at].ids, alone[at].count * sizeof *alone[at].ids) == 0);
        }
    }
    tidemill_session_free(alone[0].session);
    tidemill_session_free(alone[1].session);
}

/* ---- a second call on a session that has one ---- */

/* Every function on a session in which a call runs. */
static void all_are_busy(tidemill_session *session, tidemill_sampler *sampler, const char *scratch) {
    static const uint32_t ids[] = {1000, 1001};
    char *state = format("%s/busy.state", scratch), *result = NULL, *error;
    uint32_t held[64], best[2], token = 7;
    float values[2] = {7, 7};
    size_t count = 7;
    GIVES(TIDEMILL_BUSY, tidemill_session_tokens(session, held, 64, &count, &error));
    GIVES(TIDEMILL_BUSY, tidemill_session_sync(session, ids, 2, NULL, NULL, NULL, &count, &error));
    GIVES(TIDEMILL_BUSY, tidemill_session_append(session, ids, 2, NULL, NULL, NULL, &error));
    GIVES(TIDEMILL_BUSY, tidemill_session_score(session, ids, 2, values, best, NULL, NULL, NULL, &error));
    GIVES(TIDEMILL_BUSY, tidemill_session_truncate(session, 0, &error));
    GIVES(TIDEMILL_BUSY, tidemill_session_logits(session, NULL, 0, &count, &error));
    GIVES(TIDEMILL_BUSY, tidemill_session_save(session, state, &error));
    GIVES(TIDEMILL_BUSY, tidemill_session_load(session, state, &error));
    GIVES(TIDEMILL_BUSY, tidemill_sampler_sample(sampler, session, &token, &error));
    GIVES(TIDEMILL_BUSY, tidemill_generate(session, twin_requests[0], NULL, NULL, NULL, &result, &error));
    CHECK(count == 7 && token == 7 && values[0] == 7 && result == NULL);
    (void)tidemill_session_length(session); /* whatever it says, it answers */
    free(state);
}

/* A call in whose middle something is done. */
struct middle {
    const tidemill_model *model;
    tidemill_session *session;
    tidemill_sampler *sampler;
    tidemill_cancel *cancel;
    const char *scratch;
    struct gate reached, go_on;
    /* Whether the callback calls the library, or waits for another thread. */
    int calls_itself;
    int was_there;
    tidemill_status status;
    uint32_t ids[64];
    size_t count;
};

static void middle_reached(struct middle *middle) {
    uint32_t ids[64];
    char *info = NULL, *error;
    if (middle->was_there) {
        return;
    }
    middle->was_there = 1;
    if (!middle->calls_itself) {
        gate_open(&middle->reached);
        gate_wait(&middle->go_on);
        return;
    }
    all_are_busy(middle->session, middle->sampler, middle->scratch);
    CHECK(ids_of(middle->model, STORY, ids, 64) > 0); /* of models, any number of calls */
    OK(tidemill_model_info(middle->model, &info, &error));
    tidemill_string_free(info);
}

static int32_t middle_event(void *user, int32_t kind, const char *data, size_t bytes) {
    (void)data;
    (void)bytes;
    if (kind == TIDEMILL_TEXT) {
        middle_reached((struct middle *)user);
    }
    return 0;
}

static int32_t middle_progress(void *user, double done, double total) {
    CHECK(done <= total);
    middle_reached((struct middle *)user);
    return 0;
}

static void middle_init(struct middle *middle, const tidemill_model *model, tidemill_session *session,
                        tidemill_sampler *sampler, const char *scratch) {
    memset(middle, 0, sizeof *middle);
    middle->model = model;
    middle->session = session;
    middle->sampler = sampler;
    middle->scratch = scratch;
    gate_init(&middle->reached);
    gate_init(&middle->go_on);
}

static void middle_end(struct middle *middle) {
    gate_end(&middle->reached);
    gate_end(&middle->go_on);
}

static void *run_middle(void *with) {
    struct middle *middle = (struct middle *)with;
    char *result = NULL, *error = NULL;
    middle->status =
        tidemill_generate(middle->session, twin_requests[0], middle_event, middle, middle->cancel, &result, &error);
    CHECK(result != NULL && (error == NULL) == (middle->status == TIDEMILL_OK));
    middle->count = result_ids(result, middle->ids, 64);
    tidemill_string_free(result);
    tidemill_string_free(error);
    return NULL;
}

static void check_busy(tidemill_model *model, const char *scratch) {
    tidemill_session *session = new_session(model);
    tidemill_sampler *sampler = NULL;
    struct middle middle;
    uint32_t wanted[64], ids[40];
    size_t count = generate_ids(session, twin_requests[0], wanted, 64);
    pthread_t thread;
    char *error;
    OK(tidemill_sampler_new(model, NULL, &sampler, &error));
    some_ids(ids, 40, 4);
    middle_init(&middle, model, session, sampler, scratch);
    middle.calls_itself = 1;
    run_middle(&middle);
    CHECK(middle.was_there && middle.status == TIDEMILL_OK && middle.count == count);
    CHECK(memcmp(middle.ids, wanted, count * sizeof *wanted) == 0);
    middle.was_there = 0;
    OK(tidemill_session_sync(session, ids, 40, middle_progress, &middle, NULL, NULL, &error));
    CHECK(middle.was_there && session_is(session, ids, 40));
    middle_end(&middle);
    middle_init(&middle, model, session, sampler, scratch);
    thread = start(run_middle, &middle);
    gate_wait(&middle.reached);
    all_are_busy(session, sampler, scratch);
    gate_open(&middle.go_on);
    join(thread);
    CHECK(middle.status == TIDEMILL_OK && middle.count == count);
    CHECK(memcmp(middle.ids, wanted, count * sizeof *wanted) == 0);
    middle_end(&middle);
    tidemill_sampler_free(sampler);
    tidemill_session_free(session);
}

/* One sampler, two threads: each call works or is told that the other one has it. */
static void *run_sampler(void *with) {
    static const float logits[] = {0, 3, 1, 2};
    tidemill_sampler *sampler = (tidemill_sampler *)with;
    int at;
    for (at = 0; at < 2000; at++) {
        uint32_t token = 7, history = 0;
        char *error = NULL;
        tidemill_status status =
            tidemill_sampler_sample_logits(sampler, logits, 4, &history, 1, &token, &error);
        CHECK(status == TIDEMILL_OK ? token == 1 && error == NULL : status == TIDEMILL_BUSY && token == 7);
        tidemill_string_free(error);
    }
    return NULL;
}

static void check_shared_sampler(tidemill_model *model) {
    tidemill_sampler *sampler = NULL;
    pthread_t thread;
    char *error;
    OK(tidemill_sampler_new(model, "{\"temperature\":0}", &sampler, &error));
    thread = start(run_sampler, sampler);
    run_sampler(sampler);
    join(thread);
    tidemill_sampler_free(sampler);
}

/* ---- cancelling from another thread ---- */

enum what { SYNC, APPEND, SCORE, GENERATE, BATCH, WHATS };

struct work {
    enum what what;
    tidemill_model *model;
    tidemill_session *session;
    const tidemill_cancel *cancel;
    const uint32_t *ids;
    struct gate begun;
    tidemill_status status;
    double ended_s;
};

static int32_t work_begun(void *user, double done, double total) {
    (void)done;
    (void)total;
    gate_open(&((struct work *)user)->begun);
    return 0;
}

static int32_t work_event(void *user, int32_t kind, const char *data, size_t bytes) {
    (void)kind;
    (void)data;
    (void)bytes;
    gate_open(&((struct work *)user)->begun);
    return 0;
}

static void *run_work(void *with) {
    static float scores[LONG_PROMPT];
    struct work *work = (struct work *)with;
    char *request = greedy_request(work->ids, LONG_PROMPT, 4), *result = NULL, *error = NULL;
    const char *requests[1];
    requests[0] = request;
    switch (work->what) {
    case SYNC:
        work->status = tidemill_session_sync(work->session, work->ids, LONG_PROMPT, work_begun, work, work->cancel,
                                             NULL, &error);
        break;
    case APPEND:
        work->status = tidemill_session_append(work->session, work->ids, LONG_PROMPT, work_begun, work, work->cancel,
                                               &error);
        break;
    case SCORE:
        work->status = tidemill_session_score(work->session, work->ids, LONG_PROMPT, scores, NULL, work_begun, work,
                                              work->cancel, &error);
        break;
    case GENERATE:
        work->status = tidemill_generate(work->session, request, work_event, work, work->cancel, &result, &error);
        CHECK(result != NULL);
        break;
    default:
        gate_open(&work->begun); /* a batch shows its results alone */
        work->status = tidemill_batch(work->model, requests, 1, NULL, NULL, work->cancel, &error);
        break;
    }
    work->ended_s = clock_s();
    CHECK(error != NULL);
    tidemill_string_free(result);
    tidemill_string_free(error);
    free(request);
    return NULL;
}

/* The token is freed while the call that has it still runs. */
static void cancel_in(enum what what, tidemill_model *model, tidemill_session *session, const uint32_t *ids) {
    tidemill_cancel *cancel = tidemill_cancel_new();
    struct work work;
    pthread_t thread;
    double set_s;
    CHECK(cancel != NULL);
    memset(&work, 0, sizeof work);
    work.what = what;
    work.model = model;
    work.session = session;
    work.cancel = cancel;
    work.ids = ids;
    gate_init(&work.begun);
    thread = start(run_work, &work);
    gate_wait(&work.begun);
    sleep_ms(5);
    set_s = clock_s();
    tidemill_cancel_set(cancel);
    if (what != BATCH) {
        tidemill_cancel_free(cancel); /* that call has begun for sure */
    }
    join(thread);
    if (what == BATCH) {
        tidemill_cancel_free(cancel);
    }
    CHECK(work.status == TIDEMILL_CANCELLED);
    CHECK(work.ended_s - set_s < bound_s);
    gate_end(&work.begun);
}

static void check_cancel(const char *path) {
    static uint32_t ids[LONG_PROMPT], held[40];
    tidemill_model *model = open_model(path, LONG_OPTIONS);
    tidemill_session *session = new_session(model);
    uint32_t wanted[64], made[64];
    size_t count = generate_ids(session, twin_requests[0], wanted, 64);
    int what;
    char *error;
    some_ids(ids, LONG_PROMPT, 5);
    some_ids(held, 40, 6);
    for (what = SYNC; what < WHATS; what++) {
        OK(tidemill_session_sync(session, held, 40, NULL, NULL, NULL, NULL, &error));
        cancel_in((enum what)what, model, session, ids);
        if (what == APPEND || what == SCORE || what == BATCH) {
            CHECK(session_is(session, held, 40));
        } else {
            CHECK(tidemill_session_length(session) < LONG_PROMPT);
        }
        CHECK(generate_ids(session, twin_requests[0], made, 64) == count);
        CHECK(memcmp(made, wanted, count * sizeof *wanted) == 0);
    }
    tidemill_session_free(session);
    tidemill_model_free(model);
}

static int32_t stop_at_300(void *user, double done, double total) {
    (void)user;
    (void)total;
    return done >= 300;
}

static int32_t stop_at_once(void *user, double done, double total) {
    (void)user;
    (void)done;
    (void)total;
    return 1;
}

/* What a sync had finished when it was stopped stays, and the next one goes on from there. */
static void check_kept_chunks(const char *path) {
    static uint32_t ids[900], held[900];
    tidemill_model *model = open_model(path, OPTIONS_WITH(",\"chunk_tokens\":128")), *none = NULL;
    tidemill_session *session = new_session(model);
    size_t kept = 0, reused = 0;
    char *error;
    some_ids(ids, 900, 8);
    GIVES(TIDEMILL_CANCELLED, tidemill_session_sync(session, ids, 900, stop_at_300, NULL, NULL, &reused, &error));
    OK(tidemill_session_tokens(session, held, 900, &kept, &error));
    CHECK(reused == 0 && kept >= 256 && kept < 900 && memcmp(held, ids, kept * sizeof *ids) == 0);
    OK(tidemill_session_sync(session, ids, 900, NULL, NULL, NULL, &reused, &error));
    CHECK(reused == kept && session_is(session, ids, 900));
    GIVES(TIDEMILL_CANCELLED, tidemill_model_open(path, OPTIONS, stop_at_once, NULL, NULL, &none, &error));
    CHECK(none == NULL);
    tidemill_session_free(session);
    tidemill_model_free(model);
}

/* ---- freed in the middle ---- */

/* The model's handle and a token that is never set go while a call runs; it ends as if nothing had been. */
static void check_freed_in_use(const char *path, const char *scratch) {
    tidemill_model *model = open_model(path, OPTIONS);
    tidemill_session *session = new_session(model);
    tidemill_sampler *sampler = NULL;
    struct middle middle;
    uint32_t wanted[64], token;
    size_t count = generate_ids(session, twin_requests[0], wanted, 64);
    pthread_t thread;
    char *error;
    OK(tidemill_sampler_new(model, "{\"temperature\":0}", &sampler, &error));
    middle_init(&middle, model, session, sampler, scratch);
    middle.cancel = tidemill_cancel_new();
    CHECK(middle.cancel != NULL);
    thread = start(run_middle, &middle);
    gate_wait(&middle.reached);
    tidemill_cancel_free(middle.cancel);
    tidemill_model_free(model);
    gate_open(&middle.go_on);
    join(thread);
    CHECK(middle.status == TIDEMILL_OK && middle.count == count);
    CHECK(memcmp(middle.ids, wanted, count * sizeof *wanted) == 0);
    OK(tidemill_sampler_sample(sampler, session, &token, &error));
    middle_end(&middle);
    tidemill_session_free(session);
    OK(tidemill_sampler_sample_logits(sampler, (const float[]){0, 1}, 2, &token, 0, &token, &error));
    CHECK(token == 1);
    tidemill_sampler_free(sampler);
}

/* ---- forks ---- */

/* In the child: inherited handles are refused, and nothing hangs. */
static void be_a_child(tidemill_model *model, tidemill_session *session, tidemill_sampler *sampler,
                       tidemill_cancel *cancel, const char *scratch) {
    static const uint32_t ids[] = {1000, 1001};
    static const char *const requests[] = {"{\"prompt\":\"a\",\"max_tokens\":1}"};
    char *state = format("%s/child.state", scratch), *json = NULL, *error;
    tidemill_session *other = NULL;
    tidemill_sampler *chooser = NULL;
    uint32_t held[64], token = 7;
    float values[2];
    size_t count = 7, experts = 7;
    REFUSED(tidemill_model_info(model, &json, &error));
    REFUSED(tidemill_model_stats(model, 0, &json, &error));
    REFUSED(tidemill_model_heat(model, NULL, 0, &count, &experts, &error));
    REFUSED(tidemill_tokenize(model, "a", 1, 0, held, 64, &count, &error));
    REFUSED(tidemill_detokenize(model, ids, 1, 0, NULL, 0, &count, &error));
    REFUSED(tidemill_chat_prompt(model, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", held, 64, &count,
                                 &error));
    REFUSED(tidemill_session_new(model, &other, &error));
    REFUSED(tidemill_sampler_new(model, NULL, &chooser, &error));
    REFUSED(tidemill_batch(model, requests, 1, NULL, NULL, cancel, &error));
    REFUSED(tidemill_session_tokens(session, held, 64, &count, &error));
    REFUSED(tidemill_session_sync(session, ids, 2, NULL, NULL, cancel, NULL, &error));
    REFUSED(tidemill_session_append(session, ids, 2, NULL, NULL, cancel, &error));
    REFUSED(tidemill_session_score(session, ids, 2, values, NULL, NULL, NULL, cancel, &error));
    REFUSED(tidemill_session_truncate(session, 0, &error));
    REFUSED(tidemill_session_logits(session, NULL, 0, &count, &error));
    REFUSED(tidemill_session_save(session, state, &error));
    REFUSED(tidemill_session_load(session, state, &error));
    REFUSED(tidemill_sampler_sample(sampler, session, &token, &error));
    REFUSED(tidemill_sampler_sample_logits(sampler, values, 2, &token, 0, &token, &error));
    REFUSED(tidemill_generate(session, requests[0], NULL, NULL, cancel, &json, &error));
    CHECK(count == 7 && experts == 7 && token == 7 && json == NULL && other == NULL && chooser == NULL);
    (void)tidemill_session_length(session);
    tidemill_cancel_set(cancel);
    tidemill_cancel_free(cancel);
    tidemill_session_free(session);
    tidemill_sampler_free(sampler);
    tidemill_model_free(model);
    free(state);
}

static void check_child(tidemill_model *model, tidemill_session *session, tidemill_sampler *sampler,
                        tidemill_cancel *cancel, const char *scratch) {
    int status = -1;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(20); /* a hang is a signal */
        be_a_child(model, session, sampler, cancel, scratch);
        _Exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void check_forks(tidemill_model *model, const char *scratch) {
    tidemill_session *session = new_session(model);
    tidemill_sampler *sampler = NULL;
    struct middle middle;
    uint32_t wanted[64];
    size_t count = generate_ids(session, twin_requests[0], wanted, 64);
    pthread_t thread;
    char *error;
    OK(tidemill_sampler_new(model, NULL, &sampler, &error));
    middle_init(&middle, model, session, sampler, scratch);
    middle.cancel = tidemill_cancel_new();
    CHECK(middle.cancel != NULL);
    check_child(model, session, sampler, middle.cancel, scratch);
    /* The same in the middle of a call: what is locked stays locked in the child. */
    thread = start(run_middle, &middle);
    gate_wait(&middle.reached);
    check_child(model, session, sampler, middle.cancel, scratch);
    gate_open(&middle.go_on);
    join(thread);
    CHECK(middle.status == TIDEMILL_OK && middle.count == count);
    CHECK(memcmp(middle.ids, wanted, count * sizeof *wanted) == 0);
    tidemill_cancel_free(middle.cancel);
    middle_end(&middle);
    tidemill_sampler_free(sampler);
    tidemill_session_free(session);
}

int main(int count, char **arguments) {
    size_t threads = threads_now();
    tidemill_model *model;
    long times;
    CHECK(count >= 3);
    times = count > 3 ? strtol(arguments[3], NULL, 10) : 10;
    bound_s = count > 4 ? strtod(arguments[4], NULL) / 1000 : bound_s;
    model = open_model(arguments[1], OPTIONS);
    check_busy(model, arguments[2]);
    check_shared_sampler(model);
    check_forks(model, arguments[2]);
    two_like_one(model, times);
    tidemill_model_free(model);
    check_freed_in_use(arguments[1], arguments[2]);
    check_kept_chunks(arguments[1]);
    check_cancel(arguments[1]);
    check_threads_are(threads);
    return 0;
}
