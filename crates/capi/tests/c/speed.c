/* Tokens a second of an own loop: sampler, append. speed MODEL PROMPT_TOKENS GEN_TOKENS OPTIONS_JSON */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "tidemill.h"

static double now_s(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + 1e-9 * (double)at.tv_nsec;
}

static void check(tidemill_status status, char *error) {
    if (status != TIDEMILL_OK) {
        fprintf(stderr, "%s: %s\n", tidemill_status_name(status), error == NULL ? "" : error);
        exit(status);
    }
}

int main(int argc, char **argv) {
    tidemill_model *model;
    tidemill_session *session;
    tidemill_sampler *sampler;
    uint32_t *prompt, token;
    size_t prompt_tokens, gen_tokens, at;
    double opened, begun, start, end;
    char *error = NULL;
    if (argc != 5) {
        return 2;
    }
    prompt_tokens = (size_t)atol(argv[2]);
    gen_tokens = (size_t)atol(argv[3]);
    begun = now_s();
    check(tidemill_model_open(argv[1], argv[4], NULL, NULL, NULL, &model, &error), error);
    opened = now_s();
    check(tidemill_session_new(model, &session, &error), error);
    check(tidemill_sampler_new(model, "{\"temperature\": 0}", &sampler, &error), error);
    prompt = (uint32_t *)malloc(prompt_tokens * sizeof *prompt);
    for (at = 0; at < prompt_tokens; at++) {
        prompt[at] = (uint32_t)(100 + at * 7 % 1000);
    }
    check(tidemill_session_sync(session, prompt, prompt_tokens, NULL, NULL, NULL, NULL, &error), error);
    start = now_s();
    for (at = 0; at < gen_tokens; at++) {
        check(tidemill_sampler_sample(sampler, session, &token, &error), error);
        check(tidemill_session_append(session, &token, 1, NULL, NULL, NULL, &error), error);
    }
    end = now_s();
    printf("open %.3f s, %.1f tokens/s\n", opened - begun, (double)gen_tokens / (end - start));
    free(prompt);
    tidemill_sampler_free(sampler);
    tidemill_session_free(session);
    tidemill_model_free(model);
    return 0;
}
