//! The tests of this crate from outside, in one program: linking one takes longer than most of its tests run.

mod bad_input;
mod chat;
mod common;
mod doctor;
mod faults;
mod gpu;
mod help;
mod logits;
mod pull;
mod run;
mod selftest;
mod serve;
mod storm;
mod synth;
