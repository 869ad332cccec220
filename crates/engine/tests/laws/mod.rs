//! The laws of the engine, each as a test: same numbers whatever the cache, the drive, the threads and the chunks;
//! a state that can go back and survive; faults that are errors and no more; memory that was planned.

mod batch;
mod claims;
mod directory;
mod drive;
mod fairness;
mod faults;
mod faulty;
mod gpu;
mod gpu_company;
mod identity;
mod limits;
mod loading;
mod prefixes;
mod resume;
mod scheduler;
mod state;
mod tools;
mod trade;
