/* Bad input: what each gives, and that nothing changes by it. bad MODEL SCRATCH */
#include "nulls.h"

#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#define DEPTH 100000

struct bad_json {
    const char *json;
    /* What the error names; NULL where there is nothing to name. */
    const char *named;
};

/* Lists in lists in the value of a key. The caller frees it. */
static char *deep(const char *key) {
    char *lists = (char *)malloc(2 * DEPTH + 1), *json;
    CHECK(lists != NULL);
    memset(lists, '[', DEPTH);
    memset(lists + DEPTH, ']', DEPTH);
    lists[2 * DEPTH] = '\0';
    json = format("{\"%s\":%s}", key, lists);
    free(lists);
    return json;
}

static void refuse_options(const char *path, const char *json, const char *named) {
    tidemill_model *model = (tidemill_model *)(void *)UNSET;
    char *plan = UNSET, *error;
    SAYS(TIDEMILL_INVALID_REQUEST, named, tidemill_plan(path, json, &plan, &error));
    CHECK(plan == UNSET);
    SAYS(TIDEMILL_INVALID_REQUEST, named, tidemill_model_open(path, json, NULL, NULL, NULL, &model, &error));
    CHECK(model == NULL);
}

static void bad_options(const char *path) {
    static const struct bad_json options[] = {
        {"", NULL},
        {"{", NULL},
        {"[]", NULL},
        {"{} {}", NULL},
        {"{\"treads\":2}", "treads"},
        {"{\"threads\":\"2\"}", "threads"},
        {"{\"threads\":0}", "threads"},
        {"{\"threads\":2,\"threads\":2}", "threads"},
        {"{\"context\":1.5}", "context"},
        {"{\"sessions\":0}", "sessions"},
        {"{\"memory_bytes\":-1}", "memory_bytes"},
        {"{\"memory_bytes\":\"6GiB\"}", "memory_bytes"},
        {"{\"device\":\"tpu\"}", "device"},
        {"{\"device\":null,\"device\":\"cpu\"}", "device"},
        {"{\"exact\":1}", "exact"},
        {"{\"kv\":\"q3\"}", "kv"},
        {"{\"disk\":4}", "disk"},
        {"{\"device\":\"\xff\"}", NULL},
        {"{\"device\":\"cpu\xc3\"}", NULL},
    };
    char *nested = deep("device");
    size_t at;
    for (at = 0; at < sizeof options / sizeof *options; at++) {
        refuse_options(path, options[at].json, options[at].named);
    }
    refuse_options(path, nested, NULL);
    free(nested);
}

static void bad_samplers(const tidemill_model *model) {
    static const struct bad_json options[] = {
        {"[]", NULL},
        {"{\"temperature\":-1}", "temperature"},
        {"{\"temperature\":\"hot\"}", "temperature"},
        {"{\"temprature\":0}", "temprature"},
        {"{\"top_p\":2}", "top_p"},
        {"{\"seed\":1,\"seed\":2}", "seed"},
        {"{\"max_tokens\":1}", "max_tokens"},
    };
    size_t at;
    char *error;
    for (at = 0; at < sizeof options / sizeof *options; at++) {
        tidemill_sampler *sampler = (tidemill_sampler *)(void *)UNSET;
        SAYS(TIDEMILL_INVALID_REQUEST, options[at].named,
             tidemill_sampler_new(model, options[at].json, &sampler, &error));
        CHECK(sampler == NULL);
    }
}

struct failed {
    size_t calls;
    tidemill_status status;
};

static int32_t fail(void *user, size_t index, tidemill_status status, const char *result) {
    struct failed *failed = (struct failed *)user;
    CHECK(index == 0 && result != NULL && json_member(json_member(result, "error"), "message") != NULL);
    failed->calls++;
    failed->status = status;
    return 0;
}

/* In a session of its own, and as the one request of a batch, where it fails alone. */
static void refuse_request(tidemill_model *model, tidemill_session *session, const char *json, tidemill_status want,
                           const char *named) {
    struct failed failed = {0, TIDEMILL_OK};
    char *result = UNSET, *error;
    SAYS(want, named, tidemill_generate(session, json, NULL, NULL, NULL, &result, &error));
    CHECK(result == UNSET);
    OK(tidemill_batch(model, &json, 1, fail, &failed, NULL, &error));
    CHECK(failed.calls == 1 && failed.status == want);
}

static void bad_requests(tidemill_model *model, tidemill_session *session, const uint32_t *held, size_t count) {
    static const struct bad_json requests[] = {
        {"", NULL},
        {"[]", NULL},
        {"{}", NULL},
        {"{\"prompt\":\"a\",\"tokens\":[1000]}", NULL},
        {"{\"prompt\":\"a\",\"prompt\":\"b\"}", "prompt"},
        {"{\"prompt\":3}", "prompt"},
        {"{\"prompt\":\"\xff\"}", NULL},
        {"{\"prompt\":\"a\",\"temperature\":9}", "temperature"},
        {"{\"prompt\":\"a\",\"max_tokens\":\"9\"}", "max_tokens"},
        {"{\"prompt\":\"a\",\"max_token\":9}", "max_token"},
        {"{\"prompt\":\"a\",\"tools\":[]}", "tools"},
        {"{\"tokens\":[8192]}", NULL},
        {"{\"tokens\":[1000,-1]}", "tokens"},
        {"{\"tokens\":[4294967296]}", NULL},
        {"{\"tokens\":[]}", NULL},
        {"{\"messages\":\"hello\"}", "messages"},
    };
    char *nested = deep("messages"), *error;
    size_t at, needed = 7;
    for (at = 0; at < sizeof requests / sizeof *requests; at++) {
        refuse_request(model, session, requests[at].json, TIDEMILL_INVALID_REQUEST, requests[at].named);
    }
    refuse_request(model, session, nested, TIDEMILL_INVALID_REQUEST, NULL);
    REFUSED(tidemill_chat_prompt(model, nested, NULL, 0, &needed, &error));
    REFUSED(tidemill_chat_prompt(model, "{\"prompt\":\"a\"}", NULL, 0, &needed, &error));
    REFUSED(tidemill_chat_prompt(model, "{\"messages\":[], \"mesages\":[]}", NULL, 0, &needed, &error));
    CHECK(needed == 7 && session_is(session, held, count));
    free(nested);
}

static void bad_texts_and_ids(const tidemill_model *model, tidemill_session *session, const uint32_t *held,
                              size_t count) {
    static const uint32_t outside[][2] = {{1000, VOCABULARY}, {UINT32_MAX, 1000}};
    uint32_t ids[4] = {7}, best[2] = {7, 7};
    float values[2] = {7, 7};
    size_t needed = 7, reused = 7, at;
    char text[64] = "seven", *error;
    REFUSED(tidemill_tokenize(model, "a\xff", 2, 0, ids, 4, &needed, &error));
    REFUSED(tidemill_tokenize(model, "\xe6\xbc", 2, 0, ids, 4, &needed, &error));
    CHECK(needed == 7 && ids[0] == 7);
    for (at = 0; at < 2; at++) {
        const uint32_t *pair = outside[at];
        REFUSED(tidemill_detokenize(model, pair, 2, 0, text, sizeof text, &needed, &error));
        REFUSED(tidemill_session_sync(session, pair, 2, NULL, NULL, NULL, &reused, &error));
        REFUSED(tidemill_session_append(session, pair, 2, NULL, NULL, NULL, &error));
        REFUSED(tidemill_session_score(session, pair, 2, values, best, NULL, NULL, NULL, &error));
        CHECK(session_is(session, held, count));
    }
    REFUSED(tidemill_session_append(session, ids, 0, NULL, NULL, NULL, &error));
    REFUSED(tidemill_session_score(session, ids, 0, values, best, NULL, NULL, NULL, &error));
    REFUSED(tidemill_session_truncate(session, count + 1, &error));
    CHECK(needed == 7 && reused == 7 && values[0] == 7 && best[0] == 7 && strcmp(text, "seven") == 0);
    CHECK(session_is(session, held, count));
}

static void bad_lengths(tidemill_model *model, tidemill_session *session, const uint32_t *held, size_t count) {
    static uint32_t ids[CONTEXT + 1], best[CONTEXT + 1];
    static float values[CONTEXT + 1];
    size_t reused = 7;
    char *request, *error;
    some_ids(ids, CONTEXT + 1, 9);
    GIVES(TIDEMILL_CONTEXT_FULL, tidemill_session_sync(session, ids, CONTEXT + 1, NULL, NULL, NULL, &reused, &error));
    CHECK(reused == 7 && session_is(session, held, count));
    GIVES(TIDEMILL_CONTEXT_FULL,
          tidemill_session_append(session, ids, CONTEXT + 1 - count, NULL, NULL, NULL, &error));
    CHECK(session_is(session, held, count));
    values[0] = 7;
    GIVES(TIDEMILL_CONTEXT_FULL,
          tidemill_session_score(session, ids, CONTEXT + 1 - count, values, best, NULL, NULL, NULL, &error));
    CHECK(values[0] == 7 && best[0] == 0 && session_is(session, held, count));
    request = greedy_request(ids, CONTEXT + 1, 4);
    refuse_request(model, session, request, TIDEMILL_CONTEXT_FULL, NULL);
    CHECK(session_is(session, held, count));
    free(request);
}

static void bad_logits(tidemill_model *model, tidemill_sampler *sampler) {
    static float logits[VOCABULARY];
    float odd[3] = {0, 1, 2};
    tidemill_session *empty = new_session(model);
    uint32_t token = 7;
    size_t count = 7;
    char *error;
    odd[1] = nanf("");
    GIVES(TIDEMILL_CORRUPT, tidemill_sampler_sample_logits(sampler, odd, 3, &token, 0, &token, &error));
    REFUSED(tidemill_sampler_sample_logits(sampler, odd, 0, &token, 0, &token, &error));
    REFUSED(tidemill_sampler_sample(sampler, empty, &token, &error));
    REFUSED(tidemill_session_logits(empty, logits, VOCABULARY, &count, &error));
    REFUSED(tidemill_session_truncate(empty, 1, &error));
    CHECK(token == 7 && count == 7 && logits[0] == 0 && tidemill_session_length(empty) == 0);
    tidemill_session_free(empty);
}

static void refuse_file(const char *path, tidemill_status want) {
    tidemill_model *model = (tidemill_model *)(void *)UNSET;
    char *plan = UNSET, *error;
    GIVES(want, tidemill_model_open(path, OPTIONS, NULL, NULL, NULL, &model, &error));
    CHECK(model == NULL);
    GIVES(want, tidemill_plan(path, OPTIONS, &plan, &error));
    CHECK(plan == UNSET);
}

/* A model like `path`, but that its file `cut` has half of its bytes. */
static void copy_model(const char *path, const char *to, const char *cut) {
    struct dirent *entry;
    DIR *folder = opendir(path);
    CHECK(folder != NULL && (mkdir(to, 0755) == 0 || entries(to) > 0));
    while ((entry = readdir(folder)) != NULL) {
        char *from = format("%s/%s", path, entry->d_name), *into = format("%s/%s", to, entry->d_name), *data;
        size_t bytes = 0;
        if (entry->d_name[0] != '.') {
            data = read_file(from, &bytes);
            CHECK(data != NULL);
            write_file(into, data, strcmp(entry->d_name, cut) == 0 ? bytes / 2 : bytes);
            free(data);
        }
        free(from);
        free(into);
    }
    closedir(folder);
}

/* Gives a model an architecture that nobody knows. */
static void make_unknown(const char *folder) {
    static const char known[] = "wen3_5", unknown[] = "artian";
    char *path = format("%s/config.json", folder), *found, *data;
    size_t bytes = 0;
    data = read_file(path, &bytes);
    CHECK(data != NULL && strstr(data, known) != NULL);
    while ((found = strstr(data, known)) != NULL) {
        memcpy(found, unknown, sizeof unknown - 1);
    }
    write_file(path, data, bytes);
    free(data);
    free(path);
}

static void bad_files(const char *path, const char *scratch) {
    static const char gguf[] = "GGUF\3\0\0\0"
                               "\xff\xff\xff\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x7f"
                               "aaaaaaaaaaaaa";
    static const char text[] = "This is a text and no model at all.\n";
    char *at = format("%s/missing.gguf", scratch);
    refuse_file(at, TIDEMILL_NOT_FOUND);
    free(at);
    at = format("%s/foreign.gguf", scratch);
    write_file(at, text, sizeof text - 1);
    refuse_file(at, TIDEMILL_CORRUPT);
    write_file(at, gguf, sizeof gguf - 1);
    refuse_file(at, TIDEMILL_CORRUPT);
    write_file(at, "", 0);
    refuse_file(at, TIDEMILL_CORRUPT);
    remove(at);
    free(at);
    at = format("%s/cut", scratch);
    copy_model(path, at, "model.safetensors");
    refuse_file(at, TIDEMILL_CORRUPT);
    copy_model(path, at, "config.json");
    refuse_file(at, TIDEMILL_CORRUPT);
    copy_model(path, at, "");
    make_unknown(at);
    refuse_file(at, TIDEMILL_UNSUPPORTED);
    free(at);
    refuse_file(scratch, TIDEMILL_NOT_FOUND);
    refuse_file("", TIDEMILL_NOT_FOUND);
}

static void open_in(const char *path, double bytes, tidemill_status want) {
    char *options = format("{\"device\":\"cpu\",\"threads\":2,\"context\":1024,\"memory_bytes\":%.0f}", bytes);
    tidemill_model *model = (tidemill_model *)(void *)UNSET;
    char *plan = NULL, *error;
    OK(tidemill_plan(path, options, &plan, &error));
    CHECK(json_is(json_member(plan, "fits"), want == TIDEMILL_OK ? "true" : "false"));
    CHECK(json_number(json_member(plan, "floor_bytes")) > 0);
    tidemill_string_free(plan);
    error = NULL;
    CHECK(tidemill_model_open(path, options, NULL, NULL, NULL, &model, &error) == want);
    CHECK(want == TIDEMILL_OK ? model != NULL && error == NULL : model == NULL && strpbrk(error, "0123456789") != NULL);
    tidemill_string_free(error);
    tidemill_model_free(model);
    free(options);
}

static void bad_budgets(const char *path) {
    char *plan = NULL, *error;
    double floor_bytes;
    OK(tidemill_plan(path, OPTIONS, &plan, &error));
    floor_bytes = json_number(json_member(plan, "floor_bytes"));
    tidemill_string_free(plan);
    open_in(path, 20 << 20, TIDEMILL_MEMORY);
    open_in(path, 1, TIDEMILL_MEMORY);
    open_in(path, floor_bytes - 1, TIDEMILL_MEMORY);
    open_in(path, floor_bytes, TIDEMILL_OK);
}

static void one_session_too_many(const char *path) {
    tidemill_model *model = open_model(path, OPTIONS_WITH(",\"sessions\":2"));
    tidemill_session *one = new_session(model), *two = new_session(model);
    tidemill_session *three = (tidemill_session *)(void *)UNSET;
    char *error;
    GIVES(TIDEMILL_MEMORY, tidemill_session_new(model, &three, &error));
    CHECK(three == NULL);
    tidemill_session_free(one);
    one = new_session(model);
    tidemill_session_free(two);
    tidemill_session_free(one);
    tidemill_model_free(model);
}

static void refuse_state(tidemill_session *session, const char *path, const char *data, size_t bytes) {
    static const uint32_t ids[] = {1000, 1001};
    char *error;
    OK(tidemill_session_sync(session, ids, 2, NULL, NULL, NULL, NULL, &error));
    write_file(path, data, bytes);
    GIVES(TIDEMILL_CORRUPT, tidemill_session_load(session, path, &error));
    CHECK(tidemill_session_length(session) == 0);
}

static void bad_states(tidemill_model *model, tidemill_session *session, const uint32_t *held, size_t count,
                       const char *scratch) {
    char *path = format("%s/bad.state", scratch), *lost = format("%s/none/bad.state", scratch), *data, *error;
    tidemill_session *other = new_session(model);
    tidemill_status status;
    size_t bytes = 0;
    OK(tidemill_session_save(session, path, &error));
    data = read_file(path, &bytes);
    CHECK(data != NULL && bytes > 1000);
    data[bytes / 2] ^= 1;
    refuse_state(other, path, data, bytes);
    data[bytes / 2] ^= 1;
    data[bytes - 1] ^= 1;
    refuse_state(other, path, data, bytes);
    data[bytes - 1] ^= 1;
    refuse_state(other, path, data, bytes / 2);
    refuse_state(other, path, data, bytes - 1);
    refuse_state(other, path, data, 3);
    refuse_state(other, path, "This is a text and no state at all, and it is long enough to be a header, too.", 78);
    write_file(path, data, bytes);
    OK(tidemill_session_load(other, path, &error));
    CHECK(session_is(other, held, count));
    remove(path);
    GIVES(TIDEMILL_NOT_FOUND, tidemill_session_load(other, path, &error));
    CHECK(tidemill_session_length(other) == 0);
    REFUSED(tidemill_session_save(session, "\xff", &error));
    error = NULL;
    status = tidemill_session_save(session, lost, &error);
    CHECK((status == TIDEMILL_IO || status == TIDEMILL_NOT_FOUND) && error != NULL);
    tidemill_string_free(error);
    CHECK(session_is(session, held, count));
    tidemill_session_free(other);
    free(data);
    free(lost);
    free(path);
}

/* A limit on the length of files stands for a full disk. */
static void full_disk(tidemill_session *session, const uint32_t *held, size_t count, const char *scratch) {
    static const char older[] = "an older file";
    char *path = format("%s/older.state", scratch), *data, *error;
    struct rlimit whole, little;
    size_t bytes = 0, before;
    write_file(path, older, sizeof older);
    before = entries(scratch);
    CHECK(signal(SIGXFSZ, SIG_IGN) != SIG_ERR && getrlimit(RLIMIT_FSIZE, &whole) == 0);
    little = whole;
    little.rlim_cur = 4096;
    CHECK(setrlimit(RLIMIT_FSIZE, &little) == 0);
    SAYS(TIDEMILL_IO, "older.state", tidemill_session_save(session, path, &error));
    CHECK(setrlimit(RLIMIT_FSIZE, &whole) == 0);
    data = read_file(path, &bytes);
    CHECK(data != NULL && bytes == sizeof older && memcmp(data, older, bytes) == 0);
    CHECK(entries(scratch) == before && session_is(session, held, count));
    free(data);
    remove(path);
    free(path);
}

/* A token that was set before the call. */
static void cancelled_before(const char *path, tidemill_model *model, tidemill_session *session, const uint32_t *held,
                             size_t count) {
    static const char *const requests[] = {"{\"prompt\":\"" STORY "\",\"max_tokens\":4}"};
    tidemill_cancel *cancel = tidemill_cancel_new();
    tidemill_model *opened = (tidemill_model *)(void *)UNSET;
    uint32_t ids[8], best[8];
    float values[8] = {7};
    size_t reused = 7;
    char *result = NULL, *error;
    CHECK(cancel != NULL);
    some_ids(ids, 8, 3);
    tidemill_cancel_set(cancel);
    GIVES(TIDEMILL_CANCELLED, tidemill_model_open(path, OPTIONS, NULL, NULL, cancel, &opened, &error));
    CHECK(opened == NULL);
    GIVES(TIDEMILL_CANCELLED, tidemill_session_append(session, ids, 8, NULL, NULL, cancel, &error));
    CHECK(session_is(session, held, count));
    GIVES(TIDEMILL_CANCELLED, tidemill_session_score(session, ids, 8, values, best, NULL, NULL, cancel, &error));
    CHECK(values[0] == 7 && session_is(session, held, count));
    GIVES(TIDEMILL_CANCELLED, tidemill_session_sync(session, ids, 8, NULL, NULL, cancel, &reused, &error));
    CHECK(reused == 7);
    GIVES(TIDEMILL_CANCELLED, tidemill_generate(session, requests[0], NULL, NULL, cancel, &result, &error));
    CHECK(result != NULL && json_count(json_member(result, "tokens")) == 0);
    tidemill_string_free(result);
    GIVES(TIDEMILL_CANCELLED, tidemill_batch(model, requests, 1, NULL, NULL, cancel, &error));
    tidemill_cancel_free(cancel);
    OK(tidemill_session_sync(session, held, count, NULL, NULL, NULL, NULL, &error));
    CHECK(session_is(session, held, count));
}

int main(int count, char **arguments) {
    const char *path = arguments[1], *scratch = arguments[2];
    size_t threads = threads_now();
    tidemill_model *model;
    tidemill_session *session;
    tidemill_sampler *sampler = NULL;
    uint32_t held[40];
    char *error;
    CHECK(count >= 3);
    model = open_model(path, OPTIONS);
    session = new_session(model);
    OK(tidemill_sampler_new(model, "{\"temperature\":0}", &sampler, &error));
    some_ids(held, 40, 2);
    OK(tidemill_session_sync(session, held, 40, NULL, NULL, NULL, NULL, &error));
    nulls_of_models(path, model);
    nulls_of_texts(model);
    nulls_of_sessions(session);
    nulls_of_choices(model, session, sampler);
    nulls_are_freed();
    bad_options(path);
    bad_samplers(model);
    bad_requests(model, session, held, 40);
    bad_texts_and_ids(model, session, held, 40);
    bad_lengths(model, session, held, 40);
    bad_logits(model, sampler);
    bad_states(model, session, held, 40, scratch);
    full_disk(session, held, 40, scratch);
    cancelled_before(path, model, session, held, 40);
    tidemill_session_free(session);
    tidemill_sampler_free(sampler);
    tidemill_model_free(model);
    one_session_too_many(path);
    bad_budgets(path);
    bad_files(path, scratch);
    check_threads_are(threads);
    return 0;
}
