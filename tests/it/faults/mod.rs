//! Bad input and broken surroundings, one story a fault.

mod files;
mod langfuse;
mod storage;
