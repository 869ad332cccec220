/* A loop of one's own: tokens in, a choice after each step, text out piece by piece.
 *
 *     tokens MODEL PROMPT [--ids] [--max N] [--temperature T] [--seed N] [--options JSON]
 *
 * Without --temperature the best token is taken each time, by the logits; with it a sampler chooses. --ids prints the
 * ids of the tokens that were made, instead of their text. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <tidemill.h>

struct arguments {
    const char *model, *prompt, *options, *temperature, *seed;
    long max;
    int ids;
};

/* What the loop holds. */
struct loop {
    tidemill_model *model;
    tidemill_session *session;
    tidemill_sampler *sampler; /* NULL for the best token */
    float *logits;
    size_t vocab;
    uint32_t *made;
    size_t count;
    /* Tokens whose text is out, and where the piece before theirs begins. */
    size_t shown, before;
};

/* Says what failed, and frees the message. */
static tidemill_status report(tidemill_status status, char *error) {
    if (status != TIDEMILL_OK) {
        fprintf(stderr, "error: %s: %s\n", tidemill_status_name(status), error ? error : "no message");
    }
    tidemill_string_free(error);
    return status;
}

/* Whether `token` ends an answer, as the model's information says. A larger program has a JSON library for this. */
static int is_end(const char *info, uint32_t token) {
    const char *at = strstr(info, "\"end_tokens\"");
    char *after;
    at = at ? strchr(at, '[') : NULL;
    while (at != NULL && *at != ']' && *at != '\0') {
        unsigned long id = strtoul(at + 1, &after, 10);
        if (after != at + 1 && id == token) {
            return 1;
        }
        at += 1 + strcspn(at + 1, ",]");
    }
    return 0;
}

/* The text of some tokens, ended by NUL; NULL where that fails. */
static char *text_of(const struct loop *loop, size_t from, size_t to, size_t *bytes) {
    const uint32_t *tokens = loop->made + from;
    char *text = NULL, *error = NULL;
    tidemill_status status =
        tidemill_detokenize(loop->model, tokens, to - from, 0, NULL, 0, bytes, &error);
    if (report(status, error) == TIDEMILL_OK) {
        text = malloc(*bytes + 1);
        if (text == NULL) {
            return NULL;
        }
        text[*bytes] = '\0';
        status = tidemill_detokenize(loop->model, tokens, to - from, 0, text, *bytes, bytes, &error);
        if (report(status, error) != TIDEMILL_OK) {
            free(text);
            text = NULL;
        }
    }
    return text;
}

/* Prints what came to the text. A token may end in the middle of a character, whose text is U+FFFD until the rest is
   there; and the text of a token can depend on the one before it. So the piece before is made along, and left out. */
static int show(struct loop *loop, int at_end) {
    size_t old_bytes = 0, bytes = 0;
    char *old = text_of(loop, loop->before, loop->shown, &old_bytes);
    char *text = text_of(loop, loop->before, loop->count, &bytes);
    int fine = old != NULL && text != NULL;
    int is_whole = bytes < 3 || memcmp(text + bytes - 3, "\xef\xbf\xbd", 3) != 0;
    if (fine && bytes > old_bytes && (is_whole || at_end)) {
        fwrite(text + old_bytes, 1, bytes - old_bytes, stdout);
        fflush(stdout);
        loop->before = loop->shown;
        loop->shown = loop->count;
    }
    free(old);
    free(text);
    return fine;
}

static tidemill_status choose(struct loop *loop, uint32_t *token) {
    char *error = NULL;
    size_t count = 0, at;
    tidemill_status status;
    if (loop->sampler != NULL) {
        status = tidemill_sampler_sample(loop->sampler, loop->session, token, &error);
        return report(status, error);
    }
    status = tidemill_session_logits(loop->session, loop->logits, loop->vocab, &count, &error);
    *token = 0;
    for (at = 1; status == TIDEMILL_OK && at < count; at++) {
        *token = loop->logits[at] > loop->logits[*token] ? (uint32_t)at : *token;
    }
    return report(status, error);
}

/* Until the model ends the answer, `max` tokens are made, or the context is full. */
static tidemill_status generate(struct loop *loop, const struct arguments *given, const char *info) {
    tidemill_status status = TIDEMILL_OK;
    uint32_t token;
    char *error = NULL;
    while (loop->count < (size_t)given->max) {
        status = choose(loop, &token);
        if (status != TIDEMILL_OK || is_end(info, token)) {
            break;
        }
        loop->made[loop->count++] = token;
        if (given->ids) {
            printf("%s%lu", loop->count > 1 ? " " : "", (unsigned long)token);
        } else if (!show(loop, 0)) {
            return TIDEMILL_INTERNAL;
        }
        if (loop->count == (size_t)given->max) {
            break; /* nobody asks what comes after the last one */
        }
        status = tidemill_session_append(loop->session, &token, 1, NULL, NULL, NULL, &error);
        if (status == TIDEMILL_CONTEXT_FULL) {
            tidemill_string_free(error);
            status = TIDEMILL_OK;
            break;
        }
        if (report(status, error) != TIDEMILL_OK) {
            break;
        }
    }
    if (!given->ids) {
        show(loop, 1);
    }
    putchar('\n');
    return status;
}

/* Makes the prompt the session's tokens, as `tidemill run --raw` does. */
static tidemill_status read_prompt(struct loop *loop, const char *prompt) {
    const uint32_t flags = TIDEMILL_TOKENIZE_DOCUMENT | TIDEMILL_TOKENIZE_SPECIALS;
    size_t bytes = strlen(prompt), count = 0, room = bytes + 16;
    uint32_t *tokens = malloc(room * sizeof *tokens);
    char *error = NULL;
    tidemill_status status;
    if (tokens == NULL) {
        return TIDEMILL_MEMORY;
    }
    status = tidemill_tokenize(loop->model, prompt, bytes, flags, tokens, room, &count, &error);
    if (report(status, error) == TIDEMILL_OK) {
        status = tidemill_session_sync(loop->session, tokens, count, NULL, NULL, NULL, NULL, &error);
        report(status, error);
    }
    free(tokens);
    return status;
}

/* Memory for the loop, and the sampler where one is wanted. */
static tidemill_status prepare(struct loop *loop, const struct arguments *given) {
    char *error = NULL, *options;
    tidemill_status status = tidemill_session_logits(loop->session, NULL, 0, &loop->vocab, &error);
    if (report(status, error) != TIDEMILL_OK) {
        return status;
    }
    loop->logits = malloc(loop->vocab * sizeof *loop->logits);
    loop->made = malloc((size_t)given->max * sizeof *loop->made);
    if (loop->logits == NULL || loop->made == NULL) {
        return TIDEMILL_MEMORY;
    }
    if (given->temperature != NULL) {
        options = malloc(64 + strlen(given->temperature) + strlen(given->seed));
        if (options == NULL) {
            return TIDEMILL_MEMORY;
        }
        sprintf(options, "{\"temperature\":%s,\"seed\":%s}", given->temperature, given->seed);
        status = tidemill_sampler_new(loop->model, options, &loop->sampler, &error);
        free(options);
        report(status, error);
    }
    return status;
}

static tidemill_status run(struct loop *loop, const struct arguments *given) {
    char *info = NULL, *error = NULL;
    tidemill_status status = tidemill_model_open(given->model, given->options, NULL, NULL, NULL, &loop->model, &error);
    if (report(status, error) == TIDEMILL_OK) {
        status = tidemill_model_info(loop->model, &info, &error);
        report(status, error);
    }
    if (status == TIDEMILL_OK) {
        status = tidemill_session_new(loop->model, &loop->session, &error);
        report(status, error);
    }
    if (status == TIDEMILL_OK) {
        status = read_prompt(loop, given->prompt);
    }
    if (status == TIDEMILL_OK) {
        status = prepare(loop, given);
    }
    if (status == TIDEMILL_OK) {
        status = generate(loop, given, info);
    }
    tidemill_string_free(info);
    return status;
}

/* 0 where they make no sense. */
static int read_arguments(int count, char **arguments, struct arguments *given) {
    int at;
    for (at = 1; at < count; at++) {
        const char *name = arguments[at], *value = at + 1 < count ? arguments[at + 1] : NULL;
        if (strcmp(name, "--ids") == 0) {
            given->ids = 1;
            continue;
        }
        if (strncmp(name, "--", 2) != 0) {
            *(given->model == NULL ? &given->model : &given->prompt) = name;
            continue;
        }
        if (value == NULL) {
            return 0;
        }
        at++;
        if (strcmp(name, "--max") == 0) {
            given->max = strtol(value, NULL, 10);
        } else if (strcmp(name, "--temperature") == 0) {
            given->temperature = value;
        } else if (strcmp(name, "--seed") == 0) {
            given->seed = value;
        } else if (strcmp(name, "--options") == 0) {
            given->options = value;
        } else {
            return 0;
        }
    }
    return given->model != NULL && given->prompt != NULL && given->max > 0;
}

int main(int count, char **arguments) {
    struct arguments given = {NULL, NULL, NULL, NULL, "0", 64, 0};
    struct loop loop = {NULL, NULL, NULL, NULL, 0, NULL, 0, 0, 0};
    tidemill_status status;
    if (!read_arguments(count, arguments, &given)) {
        fprintf(stderr, "usage: tokens MODEL PROMPT [--ids] [--max N] [--temperature T] [--seed N] [--options JSON]\n");
        return TIDEMILL_INVALID_REQUEST;
    }
    status = run(&loop, &given);
    free(loop.logits);
    free(loop.made);
    tidemill_sampler_free(loop.sampler);
    tidemill_session_free(loop.session);
    tidemill_model_free(loop.model);
    return status;
}
