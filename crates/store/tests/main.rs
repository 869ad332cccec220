//! The tests of this crate from outside, in one program: linking one takes longer than most of its tests run.

mod common;
mod disk;
mod experts;
mod resize;
mod warm;
