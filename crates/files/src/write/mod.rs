//! Minimal streaming writers of model files (filled in next).
