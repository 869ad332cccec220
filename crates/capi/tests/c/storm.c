/* Many threads open, generate, cancel and free in random order. Nothing may crash, hang, or give another status than
   those that the moment allows; and a greedy answer is the same whatever goes on beside it.
   storm MODEL SCRATCH [THREADS] [SECONDS] [SEED] */
#include "events.h"

#include <pthread.h>

#define THREADS_MAX 256
/* Models that are open at once, so that the storm fits into a small machine. */
#define SLOTS 3
#define SMALL_OPTIONS                                                                                                \
    "{\"device\":\"cpu\",\"threads\":2,\"context\":256,\"sessions\":24,\"memory_bytes\":402653184}"
#define KNOWN_REQUEST "{\"prompt\":\"" STORY "\",\"temperature\":0,\"max_tokens\":8,\"ignore_eos\":true}"
#define KNOWN_COUNT 8

/* A model that any thread may use, while nobody else holds the slot's lock. Sessions outlive it. */
struct slot {
    pthread_mutex_t lock;
    tidemill_model *model;
};

/* A token that others may set and free, once its owner's call has surely begun. */
struct target {
    pthread_mutex_t lock;
    tidemill_cancel *cancel;
    int is_in_call;
};

struct rider {
    pthread_t thread;
    uint32_t random;
    size_t index;
    tidemill_session *session;
    tidemill_sampler *sampler;
    struct target target;
    /* Events after which the callback stops; 0 is never. */
    uint32_t patience;
    size_t calls;
};

static struct slot slots[SLOTS];
static struct rider riders[THREADS_MAX];
static size_t rider_count = 8;
static const char *model_path, *scratch_path;
static double end_s;
static uint32_t known[KNOWN_COUNT];

static uint32_t next(struct rider *rider) {
    rider->random ^= rider->random << 13;
    rider->random ^= rider->random >> 17;
    rider->random ^= rider->random << 5;
    return rider->random;
}

static uint32_t below(struct rider *rider, uint32_t limit) { return next(rider) % limit; }

static void lock(pthread_mutex_t *mutex) { CHECK(pthread_mutex_lock(mutex) == 0); }
static void unlock(pthread_mutex_t *mutex) { CHECK(pthread_mutex_unlock(mutex) == 0); }

/* One of a few statuses, and an error that fits it. */
static void allow(tidemill_status status, char *error, const tidemill_status *allowed, size_t count, int line) {
    char said[512];
    size_t at = 0;
    while (at < count && allowed[at] != status) {
        at++;
    }
    if (at == count || (error == NULL) != (status == TIDEMILL_OK)) {
        snprintf(said, sizeof said, "status %d, error %s", (int)status, error ? error : "(null)");
        check_failed(__FILE__, line, "a status that the moment does not allow", said);
    }
    tidemill_string_free(error);
}

#define ALLOW(status, error, ...)                                                                                    \
    do {                                                                                                             \
        static const tidemill_status allowed[] = {TIDEMILL_OK, __VA_ARGS__};                                         \
        const tidemill_status given = (status); /* before the error is read */                                       \
        allow(given, (error), allowed, sizeof allowed / sizeof *allowed, __LINE__);                                  \
    } while (0)

static int32_t ride_progress(void *user, double done, double total) {
    struct rider *rider = (struct rider *)user;
    CHECK(done <= total);
    lock(&rider->target.lock);
    rider->target.is_in_call = 1;
    unlock(&rider->target.lock);
    if (rider->patience > 0) {
        rider->patience--;
        return rider->patience == 0;
    }
    return 0;
}

static int32_t ride_event(void *user, int32_t kind, const char *data, size_t bytes) {
    CHECK(kind > 0 && (bytes == 0 || data != NULL));
    return ride_progress(user, 0, 0);
}

static int32_t ride_result(void *user, size_t index, tidemill_status status, const char *result) {
    CHECK(index < 3 && result != NULL);
    CHECK(status == TIDEMILL_OK || status == TIDEMILL_CANCELLED || status == TIDEMILL_MEMORY);
    return ride_progress(user, 0, 0);
}

/* Before a call: sometimes a token, sometimes little patience. */
static const tidemill_cancel *arm(struct rider *rider) {
    const tidemill_cancel *cancel;
    lock(&rider->target.lock);
    if (rider->target.cancel == NULL && below(rider, 2) == 0) {
        rider->target.cancel = tidemill_cancel_new();
        CHECK(rider->target.cancel != NULL);
    }
    rider->target.is_in_call = 0;
    cancel = rider->target.cancel;
    unlock(&rider->target.lock);
    rider->patience = below(rider, 4) == 0 ? 1 + below(rider, 20) : 0;
    rider->calls++;
    return cancel;
}

/* After it: a token that may have been set is not used again. */
static void disarm(struct rider *rider) {
    lock(&rider->target.lock);
    rider->target.is_in_call = 0;
    if (rider->target.cancel != NULL) {
        tidemill_cancel_free(rider->target.cancel);
        rider->target.cancel = NULL;
    }
    unlock(&rider->target.lock);
}

/* Sets somebody's token, and sometimes frees it under the call that has it. */
static void disturb(struct rider *rider) {
    struct target *target = &riders[below(rider, (uint32_t)rider_count)].target;
    lock(&target->lock);
    if (target->cancel != NULL && target->is_in_call) {
        tidemill_cancel_set(target->cancel);
        if (below(rider, 2) == 0) {
            tidemill_cancel_free(target->cancel);
            target->cancel = NULL;
        }
    }
    unlock(&target->lock);
}

/* Opens the slot's model where there is none; the slot is locked. */
static void open_slot(struct rider *rider, struct slot *slot) {
    const tidemill_cancel *cancel;
    char *error = NULL;
    tidemill_status status;
    if (slot->model != NULL) {
        return;
    }
    cancel = arm(rider);
    status = tidemill_model_open(model_path, SMALL_OPTIONS, ride_progress, rider, cancel, &slot->model, &error);
    CHECK((slot->model != NULL) == (status == TIDEMILL_OK));
    ALLOW(status, error, TIDEMILL_CANCELLED, TIDEMILL_MEMORY);
    disarm(rider);
}

static void use_slot(struct rider *rider) {
    static const char *const requests[] = {KNOWN_REQUEST, "{\"tokens\":[1000,1001,1002],\"max_tokens\":6}",
                                           "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"max_tokens\":6}"};
    struct slot *slot = &slots[below(rider, SLOTS)];
    char *json = NULL, *error = NULL;
    lock(&slot->lock);
    open_slot(rider, slot);
    if (slot->model != NULL) {
        switch (below(rider, 16)) {
        case 0:
            tidemill_model_free(slot->model);
            slot->model = NULL;
            break;
        case 1:
            ALLOW(tidemill_model_stats(slot->model, 1, &json, &error), error, TIDEMILL_OK);
            tidemill_string_free(json);
            break;
        case 2: {
            const tidemill_cancel *cancel = arm(rider);
            tidemill_status status = tidemill_batch(slot->model, requests, 3, ride_result, rider, cancel, &error);
            ALLOW(status, error, TIDEMILL_CANCELLED, TIDEMILL_MEMORY);
            disarm(rider);
            break;
        }
        default:
            if (rider->session == NULL) {
                tidemill_status status = tidemill_session_new(slot->model, &rider->session, &error);
                ALLOW(status, error, TIDEMILL_MEMORY);
                error = NULL;
            }
            if (rider->session != NULL && rider->sampler == NULL) {
                tidemill_status status = tidemill_sampler_new(slot->model, NULL, &rider->sampler, &error);
                ALLOW(status, error, TIDEMILL_OK);
            }
            break;
        }
    }
    unlock(&slot->lock);
}

static void free_own(struct rider *rider) {
    tidemill_session_free(rider->session);
    rider->session = NULL;
    tidemill_sampler_free(rider->sampler);
    rider->sampler = NULL;
}

static void generate(struct rider *rider) {
    const tidemill_cancel *cancel = arm(rider);
    uint32_t ids[KNOWN_COUNT];
    char *result = NULL, *error = NULL;
    size_t count;
    tidemill_status status =
        tidemill_generate(rider->session, KNOWN_REQUEST, ride_event, rider, cancel, &result, &error);
    ALLOW(status, error, TIDEMILL_CANCELLED);
    disarm(rider);
    CHECK(result != NULL);
    count = result_ids(result, ids, KNOWN_COUNT);
    CHECK(memcmp(ids, known, count * sizeof *ids) == 0 && (count == KNOWN_COUNT || status == TIDEMILL_CANCELLED));
    tidemill_string_free(result);
}

static void compute(struct rider *rider) {
    const tidemill_cancel *cancel = arm(rider);
    uint32_t ids[200], count = 1 + below(rider, 200);
    float scores[200];
    size_t before = tidemill_session_length(rider->session), after;
    char *error = NULL;
    uint32_t what = below(rider, 3);
    tidemill_status status;
    some_ids(ids, count, next(rider));
    if (what == 0) {
        status = tidemill_session_sync(rider->session, ids, count, ride_progress, rider, cancel, NULL, &error);
        ALLOW(status, error, TIDEMILL_CANCELLED);
    } else if (what == 1) {
        status = tidemill_session_append(rider->session, ids, count, ride_progress, rider, cancel, &error);
        ALLOW(status, error, TIDEMILL_CANCELLED, TIDEMILL_CONTEXT_FULL);
    } else {
        status = tidemill_session_score(rider->session, ids, count, scores, NULL, ride_progress, rider, cancel, &error);
        ALLOW(status, error, TIDEMILL_CANCELLED, TIDEMILL_CONTEXT_FULL);
    }
    disarm(rider);
    after = tidemill_session_length(rider->session);
    if (what == 0) {
        CHECK(status == TIDEMILL_OK ? after == count : after <= count);
    } else {
        CHECK(after == (status == TIDEMILL_OK ? before + count : before));
    }
}

static void keep(struct rider *rider) {
    char *path = format("%s/storm.%lu.state", scratch_path, (unsigned long)rider->index), *error = NULL;
    size_t length = tidemill_session_length(rider->session);
    if (length > 0) {
        ALLOW(tidemill_session_save(rider->session, path, &error), error, TIDEMILL_OK);
        ALLOW(tidemill_session_truncate(rider->session, below(rider, (uint32_t)length), &error), error, TIDEMILL_OK);
        ALLOW(tidemill_session_load(rider->session, path, &error), error, TIDEMILL_OK);
        CHECK(tidemill_session_length(rider->session) == length);
        remove(path);
    }
    free(path);
}

static void sample(struct rider *rider) {
    uint32_t token = UINT32_MAX;
    char *error = NULL;
    tidemill_status status;
    if (rider->sampler == NULL) {
        return;
    }
    /* The sampler may be of a model that was opened before or after the session's. */
    status = tidemill_sampler_sample(rider->sampler, rider->session, &token, &error);
    ALLOW(status, error, TIDEMILL_INVALID_REQUEST);
    CHECK((status == TIDEMILL_OK) == (token < VOCABULARY));
}

static void *ride(void *with) {
    struct rider *rider = (struct rider *)with;
    while (clock_s() < end_s) {
        uint32_t what = below(rider, 16);
        if (what == 0) {
            free_own(rider);
        } else if (what < 4) {
            disturb(rider);
        } else if (rider->session == NULL || what == 4) {
            use_slot(rider);
        } else if (what < 9) {
            generate(rider);
        } else if (what < 13) {
            compute(rider);
        } else if (what < 15) {
            sample(rider);
        } else {
            keep(rider);
        }
    }
    free_own(rider);
    return NULL;
}

static void learn_known(void) {
    tidemill_model *model = open_model(model_path, SMALL_OPTIONS);
    tidemill_session *session = new_session(model);
    CHECK(generate_ids(session, KNOWN_REQUEST, known, KNOWN_COUNT) == KNOWN_COUNT);
    tidemill_session_free(session);
    tidemill_model_free(model);
}

int main(int count, char **arguments) {
    size_t threads = threads_now(), at, calls = 0;
    double seconds;
    uint32_t seed;
    CHECK(count >= 3);
    model_path = arguments[1];
    scratch_path = arguments[2];
    rider_count = count > 3 ? (size_t)strtoul(arguments[3], NULL, 10) : rider_count;
    seconds = count > 4 ? strtod(arguments[4], NULL) : 5;
    seed = count > 5 ? (uint32_t)strtoul(arguments[5], NULL, 10) : 1;
    CHECK(rider_count >= 1 && rider_count <= THREADS_MAX);
    learn_known();
    for (at = 0; at < SLOTS; at++) {
        CHECK(pthread_mutex_init(&slots[at].lock, NULL) == 0);
    }
    for (at = 0; at < rider_count; at++) {
        riders[at].index = at;
        riders[at].random = (seed * 2654435761u + (uint32_t)at * 40503u) | 1;
        CHECK(pthread_mutex_init(&riders[at].target.lock, NULL) == 0);
    }
    end_s = clock_s() + seconds;
    for (at = 0; at < rider_count; at++) {
        CHECK(pthread_create(&riders[at].thread, NULL, ride, &riders[at]) == 0);
    }
    for (at = 0; at < rider_count; at++) {
        CHECK(pthread_join(riders[at].thread, NULL) == 0);
        calls += riders[at].calls;
    }
    for (at = 0; at < SLOTS; at++) {
        tidemill_model_free(slots[at].model);
    }
    CHECK(calls > 0);
    check_threads_are(threads);
    return 0;
}
