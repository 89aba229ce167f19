use serde::{Deserialize, Deserializer, de::DeserializeOwned};

use super::{Fault, Node};

/// A typed value from a tree; `None` after at least one fault was pushed.
pub fn read<T: DeserializeOwned>(_node: &Node, _faults: &mut Vec<Fault>) -> Option<T> {
    unimplemented!()
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(_deserializer: D) -> Result<Self, D::Error> {
        unimplemented!()
    }
}
