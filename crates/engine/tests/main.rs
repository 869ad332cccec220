//! The tests of this crate from outside, in one program: linking one takes longer than most of its tests run.

mod common;
mod eval_counts;
mod generation;
mod goldens;
mod grammar;
mod laws;
mod real_gguf;
mod synth;
mod text_reply;
mod text_templates;
mod text_tokenizer;
mod text_written;
