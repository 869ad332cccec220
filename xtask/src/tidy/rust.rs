//! Laws over the syntax of one Rust file.

use std::ops::RangeInclusive;

use proc_macro2::{Delimiter, Literal, Span, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::{Finding, words};

const FUNCTION_LINES: usize = 80;

/// The line comment that excuses one line from a law that permits it; a reason must follow.
const ALLOW: &str = "tidy: allow ";

/// Types that make a `static` hold state.
const STATE_TYPES: [&str; 8] =
    ["OnceLock", "LazyLock", "OnceCell", "LazyCell", "Mutex", "RwLock", "RefCell", "UnsafeCell"];

/// `std::env` functions that read or change the environment (`temp_dir` and `home_dir` read it too).
const ENVIRONMENT: [&str; 8] =
    ["var", "var_os", "vars", "vars_os", "set_var", "remove_var", "temp_dir", "home_dir"];

const PRINTING: [&str; 5] = ["println", "eprintln", "print", "eprint", "dbg"];

/// Checks one Rust file; `path` is relative to the repository's root and decides which laws apply.
pub fn check_rust(path: &str, text: &str) -> Vec<Finding> {
    let file = match syn::parse_file(text) {
        Ok(file) => file,
        Err(e) => {
            return vec![Finding { path: path.into(), line: 0, message: format!("does not parse: {e}") }];
        }
    };
    let mut checker = Checker {
        path,
        lines: text.lines().collect(),
        room: Room::of(path),
        test_lines: Vec::new(),
        findings: Vec::new(),
    };
    checker.visit_file(&file);
    if let Ok(tokens) = text.parse::<TokenStream>() {
        checker.check_tokens(tokens);
    }
    if path == "crates/files/src/lib.rs" && !text.contains("#![forbid(unsafe_code)]") {
        checker.report_line(
            0,
            "no `#![forbid(unsafe_code)]`: this crate reads files from strangers, and memory safety is what it \
             promises them",
        );
    }
    checker.findings
}

/// What part of the house a file is in.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Room {
    below_cli: bool,
    may_be_async: bool,
    is_test: bool,
    may_be_unsafe: bool,
}

impl Room {
    fn of(path: &str) -> Room {
        let is_test = ["/tests/", "/benches/", "/examples/"].iter().any(|folder| path.contains(folder));
        let engine = path.starts_with("crates/engine/src/") && path != "crates/engine/src/bridge.rs";
        let library = ["files", "store", "kernels", "engine", "api", "server", "capi"]
            .iter()
            .any(|name| path.starts_with(&format!("crates/{name}/")));
        Room {
            // Cargo reads what a build script prints.
            below_cli: library && !is_test && !path.ends_with("/build.rs"),
            may_be_async: path.starts_with("crates/server/"),
            is_test,
            may_be_unsafe: !engine && !path.starts_with("crates/files/src/"),
        }
    }
}

struct Checker<'a> {
    path: &'a str,
    lines: Vec<&'a str>,
    room: Room,
    test_lines: Vec<RangeInclusive<usize>>,
    findings: Vec<Finding>,
}

impl Checker<'_> {
    fn report_line(&mut self, line: usize, message: impl Into<String>) {
        self.findings.push(Finding { path: self.path.into(), line, message: message.into() });
    }

    fn report(&mut self, span: Span, message: impl Into<String>) {
        self.report_line(span.start().line, message);
    }

    fn in_test(&self, span: Span) -> bool {
        let line = span.start().line;
        self.room.is_test || self.test_lines.iter().any(|lines| lines.contains(&line))
    }

    fn is_library(&self, span: Span) -> bool {
        self.room.below_cli && !self.in_test(span)
    }

    /// Whether the line of `span` or the comment block above it says `tidy: allow` with a reason.
    fn is_allowed(&self, span: Span) -> bool {
        self.comment_above(span.start().line, |line| {
            line.split_once(ALLOW).is_some_and(|(_, reason)| !reason.trim().is_empty())
        })
    }

    /// Whether `found` holds for the line, or for a comment above the statement that the line belongs to.
    fn comment_above(&self, line: usize, found: impl Fn(&str) -> bool) -> bool {
        let index = line - 1;
        if self.lines.get(index).is_some_and(|text| text.contains("//") && found(text)) {
            return true;
        }
        for text in self.lines[..index].iter().rev().map(|text| text.trim()) {
            let is_comment = text.starts_with("//");
            if is_comment && found(text) {
                return true;
            }
            let ends_statement = text.is_empty() || text.ends_with([';', '{', '}']);
            if !is_comment && !text.starts_with("#[") && ends_statement {
                return false;
            }
        }
        false
    }

    fn check_function(&mut self, signature: &syn::Signature, whole: Span) {
        let lines = whole.end().line + 1 - signature.span().start().line;
        if lines > FUNCTION_LINES {
            let name = &signature.ident;
            self.report(
                signature.span(),
                format!(
                    "`{name}` has {lines} lines, at most {FUNCTION_LINES}: give its steps names; speed must pay \
                     its rent in lines, and a function that fits on a screen can be checked by eye"
                ),
            );
        }
    }

    fn check_tokens(&mut self, tokens: TokenStream) {
        let trees: Vec<TokenTree> = tokens.into_iter().collect();
        for (i, tree) in trees.iter().enumerate() {
            match tree {
                TokenTree::Group(group) => self.check_tokens(group.stream()),
                TokenTree::Ident(ident) => self.check_word(&ident.to_string(), ident.span(), &trees[i + 1..]),
                TokenTree::Literal(literal) if !is_doc(&trees[..i]) => self.check_literal(literal),
                _ => {}
            }
        }
    }

    /// One identifier or keyword and the tokens behind it, in whatever macro it may stand.
    fn check_word(&mut self, word: &str, span: Span, rest: &[TokenTree]) {
        let is_macro = matches!(rest.first(), Some(TokenTree::Punct(p)) if p.as_char() == '!');
        match word {
            "unsafe" => self.check_unsafe(span, rest),
            "async" if !self.room.may_be_async && !self.in_test(span) => self.report(
                span,
                "async outside the server: work that waits has a thread, and everything above it stays a plain \
                 call that can be stepped through",
            ),
            "env" if self.is_library(span) && calls_one_of(rest, &ENVIRONMENT) => self.report(
                span,
                "the environment below the command line: a library whose answer depends on hidden state cannot be \
                 tested or embedded; take a parameter",
            ),
            "process" if self.is_library(span) && calls_one_of(rest, &["exit", "abort"]) => self.report(
                span,
                "ends the process below the command line: the caller may be a server with other users; return an \
                 error",
            ),
            "dbg" if is_macro => self.report(span, "`dbg!` is for the desk, not for the repository"),
            "thread_local" if is_macro && self.is_library(span) => self.report(
                span,
                "a global: two sessions in one process must not share state; put it where its owner is",
            ),
            _ if is_macro && PRINTING.contains(&word) && self.is_library(span) => self.report(
                span,
                "printing below the command line: stdout and stderr belong to the program that embeds us; return \
                 the value or take a callback",
            ),
            _ => {}
        }
    }

    /// A text that users may read, as errors and notes are.
    fn check_literal(&mut self, literal: &Literal) {
        let (text, span) = (literal.to_string(), literal.span());
        if text.contains('"') && words::speaks(self.path) && !self.in_test(span) && !self.is_allowed(span) {
            self.findings.extend(words::dialect(self.path, span.start().line, &text));
        }
    }

    fn check_unsafe(&mut self, span: Span, rest: &[TokenTree]) {
        let inside_attribute = self.lines[span.start().line - 1].trim_start().starts_with("#[");
        if !self.room.may_be_unsafe && !inside_attribute {
            let why = "unsafe outside the rooms that have it: `files` reads strangers' bytes and has none, \
                       `engine` keeps all of its in bridge.rs, where one reading covers it";
            self.report(span, why);
        }
        let is_block = matches!(rest.first(), Some(TokenTree::Group(g)) if g.delimiter() == Delimiter::Brace);
        let is_impl = matches!(rest.first(), Some(TokenTree::Ident(i)) if i == "impl");
        if (is_block || is_impl) && !self.comment_above(span.start().line, |text| text.contains("SAFETY:")) {
            self.report(
                span,
                "no `// SAFETY:` comment above: say which contract this relies on and why it holds here, because \
                 the compiler no longer does",
            );
        }
    }
}

/// Whether the tokens go on `::name` or `::{.., name, ..}` with one of `names`.
fn calls_one_of(rest: &[TokenTree], names: &[&str]) -> bool {
    let colon = |tree: Option<&TokenTree>| matches!(tree, Some(TokenTree::Punct(p)) if p.as_char() == ':');
    if !colon(rest.first()) || !colon(rest.get(1)) {
        return false;
    }
    match rest.get(2) {
        Some(TokenTree::Ident(ident)) => names.iter().any(|name| ident == name),
        Some(TokenTree::Group(group)) => group
            .stream()
            .into_iter()
            .any(|tree| matches!(tree, TokenTree::Ident(ident) if names.iter().any(|name| ident == name))),
        _ => false,
    }
}

/// Whether the tokens before a literal make it documentation.
fn is_doc(before: &[TokenTree]) -> bool {
    let [.., TokenTree::Ident(name), TokenTree::Punct(_)] = before else { return false };
    name == "doc"
}

fn is_cfg_test(attrs: &[syn::Attribute]) -> bool {
    attrs.iter().any(|attr| {
        let syn::Meta::List(list) = &attr.meta else { return false };
        list.path.is_ident("cfg") && list.tokens.to_string() == "test"
    })
}

impl<'ast> Visit<'ast> for Checker<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attrs = match item {
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            syn::Item::Static(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if is_cfg_test(attrs) {
            let span = item.span();
            self.test_lines.push(span.start().line..=span.end().line);
        }
        visit::visit_item(self, item);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.check_function(&item.sig, item.span());
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.check_function(&item.sig, item.span());
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.check_function(&item.sig, item.span());
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_item_static(&mut self, item: &'ast syn::ItemStatic) {
        let span = item.ident.span();
        let mutable = matches!(item.mutability, syn::StaticMutability::Mut(_));
        let mut state = StateType(false);
        state.visit_type(&item.ty);
        let bad = !self.in_test(span) && (mutable || (self.room.below_cli && state.0));
        if bad && (mutable || !self.is_allowed(span)) {
            self.report(
                span,
                format!(
                    "`{}` is global state: two sessions in one process must not meet in it; put it where its owner \
                     is (what never changes after a probe of the CPU may stay, with `// {ALLOW}REASON`)",
                    item.ident
                ),
            );
        }
    }
}

/// Finds a type that holds state anywhere in a type's path.
struct StateType(bool);

impl<'ast> Visit<'ast> for StateType {
    fn visit_path_segment(&mut self, segment: &'ast syn::PathSegment) {
        let name = segment.ident.to_string();
        self.0 |= STATE_TYPES.contains(&name.as_str()) || name.starts_with("Atomic");
        visit::visit_path_segment(self, segment);
    }
}

#[cfg(test)]
#[path = "rust_tests.rs"]
mod tests;
