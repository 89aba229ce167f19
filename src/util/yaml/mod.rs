//! YAML with places: every value knows its file, line and column, so that every fault can name them.
//!
//! Text becomes a tree of [`Node`]s ([`parse`]), settings are merged and filled in on that tree, and [`read`] turns
//! a node into a typed struct. Two things serde alone cannot do happen here: *all* unknown keys of a struct are
//! reported (with a suggestion), and a struct may keep a part of itself as a `Node` for a second pass ([`Section`],
//! plug-in blocks), losing no location.

mod de;
mod node;
mod parse;

pub use de::read;
pub use node::{Fault, Map, Node, Section, Span, Value, resolve_scalar};
pub use parse::parse;
