// One question, one answer, piece by piece as it is made: chat.c over the C++ wrapper. Ctrl-C stops it.
//
//     chat_cpp MODEL QUESTION [OPTIONS]
#include <csignal>
#include <cstdio>
#include <iostream>
#include <string>
#include <string_view>

#include <tidemill.hpp>

namespace {

/// For the signal handler.
tidemill_cancel *volatile interrupted = nullptr;

void on_interrupt(int signal_number) {
    tidemill_cancel_set(interrupted);
    std::signal(signal_number, SIG_DFL); // a second Ctrl-C ends the program at once
}

/// `text` as a JSON string. A larger program has a JSON library for this.
std::string quoted(std::string_view text) {
    std::string out = "\"";
    for (const char byte : text) {
        if (static_cast<unsigned char>(byte) < 0x20) {
            char code[8];
            std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(static_cast<unsigned char>(byte)));
            out += code;
        } else {
            if (byte == '"' || byte == '\\') {
                out += '\\';
            }
            out += byte;
        }
    }
    return out + '"';
}

tidemill_status chat(const std::string &path, const std::string &question, const std::string &options,
                     const tidemill::Cancel &cancel) {
    tidemill::Model model(path, options, {}, &cancel);
    tidemill::Session session = model.session();
    const std::string request = "{\"messages\":[{\"role\":\"user\",\"content\":" + quoted(question) + "}]}";
    const tidemill::Result result = session.generate(
        request,
        [](std::int32_t kind, std::string_view data) {
            if (kind == TIDEMILL_TEXT) {
                std::cout << data << std::flush;
            }
            return std::cout.good(); // whoever read our output may have gone
        },
        &cancel);
    std::cout << '\n';
    if (result.cancelled()) {
        std::cerr << "error: " << tidemill::status_name(result.status) << ": the answer was stopped\n";
    }
    return result.status;
}

} // namespace

int main(int count, char **arguments) {
    if (count < 3 || count > 4) {
        std::cerr << "usage: chat_cpp MODEL QUESTION [OPTIONS]\n";
        return TIDEMILL_INVALID_REQUEST;
    }
    try {
        tidemill::Cancel cancel;
        interrupted = cancel.get();
        std::signal(SIGINT, on_interrupt);
        tidemill_status status = TIDEMILL_OK;
        try {
            status = chat(arguments[1], arguments[2], count > 3 ? arguments[3] : "", cancel);
        } catch (...) {
            std::signal(SIGINT, SIG_DFL); // before the token goes
            throw;
        }
        std::signal(SIGINT, SIG_DFL);
        return status;
    } catch (const tidemill::Error &error) {
        std::cerr << "error: " << error.status_name() << ": " << error.what() << '\n';
        return error.status();
    } catch (const std::exception &error) {
        std::cerr << "error: " << error.what() << '\n';
        return TIDEMILL_INTERNAL;
    }
}
