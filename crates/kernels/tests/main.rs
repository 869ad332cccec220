//! The tests of this crate from outside, in one program: linking one takes longer than most of its tests run.

#[macro_use]
mod common;

mod analytic;
mod cpu;
#[cfg(feature = "gpu")]
mod gpu;
#[cfg(feature = "gpu")]
mod gpu_memory;
#[cfg(feature = "gpu")]
mod gpu_shaders;
#[cfg(feature = "gpu")]
mod metal;
