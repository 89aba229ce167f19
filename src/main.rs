//! Arguments, log set-up, exit codes; nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    assayd::cli::main()
}
