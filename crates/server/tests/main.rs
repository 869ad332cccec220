//! The server from outside, in one program.

mod agents;
mod answers;
mod cache;
mod clients;
mod document;
mod life;
mod page;
mod refusals;
mod safety;
mod support;
