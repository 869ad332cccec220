/* One question, one answer, piece by piece as it is made. Ctrl-C stops it.
 *
 *     chat MODEL QUESTION [OPTIONS]
 *
 * MODEL is a .gguf file or a directory of safetensors files. OPTIONS is JSON, such as '{"memory_bytes": 6442450944}'.
 * The exit status is the library's: 0, or what went wrong. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <tidemill.h>

/* For the signal handler. */
static tidemill_cancel *volatile cancel;

static void on_interrupt(int signal_number) {
    tidemill_cancel_set(cancel);
    signal(signal_number, SIG_DFL); /* a second Ctrl-C ends the program at once */
}

/* Says what failed, and frees the message. */
static tidemill_status report(tidemill_status status, char *error) {
    if (status != TIDEMILL_OK) {
        fprintf(stderr, "error: %s: %s\n", tidemill_status_name(status), error ? error : "no message");
    }
    tidemill_string_free(error);
    return status;
}

/* The request for an answer to `question`, which becomes a JSON string; NULL if there is no memory. */
static char *request_for(const char *question) {
    static const char before[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"", after[] = "\"}]}";
    char *request = malloc(sizeof before + 6 * strlen(question) + sizeof after), *at;
    if (request == NULL) {
        return NULL;
    }
    at = request + sprintf(request, "%s", before);
    for (; *question != '\0'; question++) {
        unsigned char byte = (unsigned char)*question;
        if (byte < 0x20) {
            at += sprintf(at, "\\u%04x", (unsigned)byte);
        } else {
            if (byte == '"' || byte == '\\') {
                *at++ = '\\';
            }
            *at++ = (char)byte;
        }
    }
    strcpy(at, after);
    return request;
}

/* Shows the answer's text; thoughts and calls of tools are other kinds. Not 0 stops the answer. */
static int32_t on_event(void *user, int32_t kind, const char *data, size_t bytes) {
    (void)user;
    if (kind != TIDEMILL_TEXT) {
        return 0;
    }
    /* Whoever read our output may have gone. */
    return fwrite(data, 1, bytes, stdout) != bytes || fflush(stdout) != 0;
}

static tidemill_status answer(tidemill_session *session, const char *question) {
    char *request = request_for(question), *result = NULL, *error = NULL;
    tidemill_status status;
    if (request == NULL) {
        fprintf(stderr, "error: no memory for the question\n");
        return TIDEMILL_MEMORY;
    }
    status = tidemill_generate(session, request, on_event, NULL, cancel, &result, &error);
    putchar('\n');
    /* `result` has the whole answer, its tokens and its numbers as JSON; also where it was stopped. */
    tidemill_string_free(result);
    free(request);
    return report(status, error);
}

int main(int count, char **arguments) {
    tidemill_model *model = NULL;
    tidemill_session *session = NULL;
    tidemill_status status;
    char *error = NULL;
    if (count < 3 || count > 4) {
        fprintf(stderr, "usage: chat MODEL QUESTION [OPTIONS]\n");
        return TIDEMILL_INVALID_REQUEST;
    }
    cancel = tidemill_cancel_new();
    if (cancel == NULL) {
        return TIDEMILL_MEMORY;
    }
    signal(SIGINT, on_interrupt);
    status = tidemill_model_open(arguments[1], count > 3 ? arguments[3] : NULL, NULL, NULL, cancel, &model, &error);
    if (report(status, error) == TIDEMILL_OK) {
        status = tidemill_session_new(model, &session, &error);
        if (report(status, error) == TIDEMILL_OK) {
            status = answer(session, arguments[2]);
        }
    }
    signal(SIGINT, SIG_DFL); /* before the token goes */
    tidemill_session_free(session);
    tidemill_model_free(model);
    tidemill_cancel_free(cancel);
    return status;
}
