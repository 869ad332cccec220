/* Tokens a second of an own loop: sampler, append. speed MODEL PROMPT_TOKENS GEN_TOKENS OPTIONS_JSON */
#include "model.h"

int main(int argc, char **argv) {
    tidemill_model *model;
    tidemill_session *session;
    tidemill_sampler *sampler;
    uint32_t *prompt, token;
    size_t prompt_tokens, gen_tokens, at;
    double opened_s, begun_s, start_s;
    char *error;
    CHECK(argc == 5);
    prompt_tokens = (size_t)atol(argv[2]);
    gen_tokens = (size_t)atol(argv[3]);
    begun_s = clock_s();
    model = open_model(argv[1], argv[4]);
    opened_s = clock_s();
    session = new_session(model);
    OK(tidemill_sampler_new(model, "{\"temperature\": 0}", &sampler, &error));
    prompt = (uint32_t *)malloc(prompt_tokens * sizeof *prompt);
    some_ids(prompt, prompt_tokens, 1);
    OK(tidemill_session_sync(session, prompt, prompt_tokens, NULL, NULL, NULL, NULL, &error));
    start_s = clock_s();
    for (at = 0; at < gen_tokens; at++) {
        OK(tidemill_sampler_sample(sampler, session, &token, &error));
        OK(tidemill_session_append(session, &token, 1, NULL, NULL, NULL, &error));
    }
    printf("open %.3f s, %.1f tokens/s\n", opened_s - begun_s, (double)gen_tokens / (clock_s() - start_s));
    free(prompt);
    tidemill_sampler_free(sampler);
    tidemill_session_free(session);
    tidemill_model_free(model);
    return 0;
}
