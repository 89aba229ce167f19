use super::{Fault, Node};

/// The documents of a file.
pub fn parse(_file: &str, _bytes: &[u8]) -> Result<Vec<Node>, Vec<Fault>> {
    unimplemented!()
}
