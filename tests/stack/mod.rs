//! The laptop stack: its engines, and its sibling in containers.

mod compose;
mod engines;
