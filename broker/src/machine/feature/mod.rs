//! One file per feature: its state, its commands, and how it is saved.

pub mod delay;
pub mod pop;
pub mod retry;
pub mod transaction;
