//! `assayd import`: a monitoring file of the older Python tool becomes a monitor. The monitor goes to standard output or
//! into a folder; what was taken over, what means something else now and what needs a decision goes to standard error.
//!
//! `old` reads the old file and remembers what nobody looked at, `translate` and the files for its parts say what becomes
//! of each key, `yaml` writes the result with its comments, `scored` carries the old ledger over.

mod metric;
mod needs;
mod old;
mod publish;
mod report;
mod scored;
mod slack;
mod source;
mod sql;
mod translate;
mod yaml;

use std::path::{Path, PathBuf};

use self::translate::Translation;
use super::{Failure, Overrides, print};
use crate::{
    config::faults_of_text,
    util::{
        text::one_line,
        yaml::{Fault, parse},
    },
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The older tool's monitoring YAML
    file: PathBuf,
    /// Its scored_items.csv: what it names is not judged again
    #[arg(long, value_name = "CSV")]
    scored_items: Option<PathBuf>,
    /// Write NAME.yaml into this folder instead of to standard output
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn import(overrides: &Overrides, arguments: &Arguments) -> Result<(), Failure> {
    let shown = arguments.file.display().to_string();
    let bytes = std::fs::read(&arguments.file).map_err(|error| Failure::Usage(format!("{shown} cannot be read: {error}")))?;
    let stem = arguments.file.file_stem().unwrap_or_default().to_string_lossy();
    let translation = document(&shown, &bytes).and_then(|tree| translate::translate(&tree, &shown, &stem)).map_err(|faults| told(&faults))?;
    // Before anything is written.
    let target = arguments.out.as_deref().map(|folder| target(folder, &translation)).transpose()?;
    let items = arguments.scored_items.as_deref().map(|csv| scored::import(overrides, csv, &translation)).transpose()?;
    let (monitor, needs) = (translation.monitor.render(), translation.needs.render());
    let written = target.as_ref().map_or_else(|| format!("{}.yaml", translation.name), |path| path.display().to_string());
    let faults = faults_of_text(&monitor, &one_line(&written, 200), &needs);
    match &target {
        None => print(&monitor)?,
        Some(path) => write(path, &monitor)?,
    }
    let to = target.map(|path| format!(" in {}", path.display())).unwrap_or_default();
    eprintln!("{shown} became the monitor `{}`{to}\n", one_line(&translation.name, 80));
    eprint!("{}", translation.report.render());
    if let Some(items) = &items {
        eprint!("\n{}", items.render());
    }
    if !needs.is_empty() {
        eprint!("\n# assayd.yaml needs:\n{needs}");
    }
    if !faults.is_empty() {
        eprintln!("\nthe monitor does not validate as it is:");
        faults.iter().for_each(|fault| eprintln!("  {fault}"));
    }
    let fruitless = items.is_some_and(|items| items.is_fruitless());
    if fruitless || !faults.is_empty() { Err(Failure::Problems) } else { Ok(()) }
}

/// The one document of the old file.
fn document(file: &str, bytes: &[u8]) -> Result<crate::util::yaml::Node, Vec<Fault>> {
    let mut documents = parse(file, bytes).map_err(|fault| vec![fault])?;
    let at = |line| crate::util::yaml::Span { file: file.into(), line, column: 1 };
    match (documents.pop(), documents.pop()) {
        (Some(tree), None) => Ok(tree),
        (None, _) => Err(vec![Fault { at: at(1), message: "the file holds nothing".to_owned() }]),
        (Some(second), Some(_)) => Err(vec![Fault { at: second.at, message: "the older tool's files have one document each".to_owned() }]),
    }
}

fn told(faults: &[Fault]) -> Failure {
    faults.iter().for_each(|fault| eprintln!("{fault}"));
    Failure::Problems
}

/// The file to be written, which must not be there: what somebody has changed since is not to be lost.
fn target(folder: &Path, translation: &Translation) -> Result<PathBuf, Failure> {
    if !folder.is_dir() {
        return Err(Failure::Usage(format!("{} is no folder", folder.display())));
    }
    let path = folder.join(format!("{}.yaml", needs::slug(&translation.name)));
    if path.exists() {
        return Err(Failure::Usage(format!("{} is there already; it is not overwritten", path.display())));
    }
    Ok(path)
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    use std::io::Write;
    let written = std::fs::File::create_new(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| Failure::Error(anyhow::Error::new(error).context(format!("writing {}", path.display()))))
}

/// A note for the user, from a file beside the code.
fn todo(text: &str, what: &str) -> String {
    text.trim_end().replace("{what}", what)
}
