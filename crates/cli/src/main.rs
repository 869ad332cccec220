//! The `tidemill` command.
#[cfg(test)]
mod bundled;

fn main() {}
