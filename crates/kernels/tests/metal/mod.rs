//! Metal without a Mac: the texts that naga writes for Metal, type-checked and run by clang on a stand-in for Metal's
//! library (`metal_stdlib`, `simd/simd.h`, `run.h`), and dispatched by our own backend, whose buffers lie in a Vulkan driver's
//! memory. What passes may still be refused by Apple's compiler, and says nothing about its optimiser or hardware.

#![allow(dead_code, unreachable_pub)] // each test binary uses a part of this module

pub mod clang;
pub mod merge;
pub mod run;
pub mod texts;
