//! The commands: a file each. Results go to standard output, everything else to standard error.
//!
//! Exit codes (SPEC 3): 0 done; 1 the command ran and found problems; 2 wrong usage or no valid settings; 3 a release check that
//! found no answer.

mod alerts;
mod backfill;
mod calibrate;
mod explain;
mod export;
mod gate;
mod import;
mod infer;
mod logs;
mod models;
mod next;
mod once;
mod outbox;
mod plan;
mod postgres;
mod prompts;
mod run;
mod secrets;
mod silence;
mod simulate;
mod status;
mod test;
mod usage;
mod validate;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use comfy_table::{LineStyle, TableStyle};

use crate::{
    config::{Cache, Loaded, Overrides, Settings, load_monitors, load_settings, load_settings_without_keys},
    util::yaml::Fault,
};

/// Tells a team when the answers of their LLM product get worse.
#[derive(Debug, Parser)]
#[command(name = "assayd", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Args)]
struct Global {
    /// Settings of the daemon
    #[arg(long, global = true, env = "ASSAYD_CONFIG", value_name = "FILE", help = "Settings of the daemon [default: assayd.yaml]")]
    config: Option<PathBuf>,
    /// Folder of the monitors
    #[arg(long, global = true, env = "ASSAYD_MONITORS", value_name = "DIR")]
    monitors: Option<PathBuf>,
    /// Folder of everything assayd writes
    #[arg(long, global = true, env = "ASSAYD_STATE", value_name = "DIR")]
    state: Option<PathBuf>,
    /// error, warn, info, debug, trace, or a filter such as `assayd=debug`
    #[arg(long, global = true, env = "ASSAYD_LOG_LEVEL", value_name = "LEVEL")]
    log_level: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Run,
    /// Check every file and report every fault
    Validate(validate::Arguments),
    /// Run the monitors' own tests: written traces and verdicts, expected decisions and alerts
    Test(test::Arguments),
    /// One run of one monitor now
    Once(once::Arguments),
    /// Monitors, next run, last run, watermark lag, alert state
    Status(status::Arguments),
    /// Every decision about one item
    Explain(explain::Arguments),
    /// The coming slots of a monitor
    Next(next::Arguments),
    /// Scores as CSV or JSON lines
    Export(export::Arguments),
    /// A monitoring file of the older Python tool as a monitor, and what it scored into the ledger
    Import(import::Arguments),
    /// A release check: exit 0 pass, 1 fail, 3 undecided
    Gate(gate::Arguments),
    /// Judge items of the past by the monitor as it is now
    Backfill(backfill::Arguments),
    /// What edited monitors would do, cost and tell; judges and writes nothing
    Plan(plan::Arguments),
    /// False alarms a month and delay of a monitor's alerts, under its own scores
    Simulate(simulate::Arguments),
    /// How far a judge agrees with people's labels, and what they would have said of all
    Calibrate(calibrate::Arguments),
    /// Alerts that people do not want to hear of for a while
    Silence {
        #[command(subcommand)]
        action: silence::Action,
    },
    /// How alerts reach people
    Alerts {
        #[command(subcommand)]
        action: alerts::Action,
    },
    /// Ask a profile's model, through limits, budgets and prices
    Infer(infer::Arguments),
    /// Profiles: whether their models answer, and what they cost
    Models(models::Arguments),
    /// What models were asked for and what it cost
    Usage(usage::Arguments),
    /// Prompts that judges read from Langfuse
    Prompts {
        #[command(subcommand)]
        action: prompts::Action,
    },
    /// What waits for sinks, and what they refused for good
    Outbox {
        #[command(subcommand)]
        action: outbox::Action,
    },
    /// Keys that settings name `secret:NAME`, sealed in the store under a master key
    Secrets {
        #[command(subcommand)]
        action: secrets::Action,
    },
    /// The tables of the `postgres` sink
    Postgres {
        #[command(subcommand)]
        action: postgres::Action,
    },
    /// Exit 0 when the daemon on this host is ready
    Healthcheck,
    /// JSON Schema of the settings, for editors
    Schema {
        #[arg(value_enum)]
        of: SchemaOf,
    },
    /// Completions for a shell
    Completions { shell: clap_complete::Shell },
    /// The manual page
    Man,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SchemaOf {
    Monitor,
    Config,
}

/// Why a command did not do what it was asked.
enum Failure {
    /// Exit 1, what there is to say has been said.
    Problems,
    /// Exit 3: a release check without an answer.
    Undecided,
    /// Exit 1.
    Error(anyhow::Error),
    /// Exit 2.
    Usage(String),
    /// Exit 2.
    Settings(Vec<Fault>),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Error(error)
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Error(anyhow::Error::new(error).context("reading the store"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Error(error.into())
    }
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    // Two libraries bring TLS; the process has to say once which provider serves both.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("assayd: TLS was set up twice");
    }
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Problems) => ExitCode::from(1),
        Err(Failure::Undecided) => ExitCode::from(3),
        Err(Failure::Error(error)) => {
            // A reader that closed the pipe (`| head`) has what it wanted.
            if error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe) {
                return ExitCode::SUCCESS;
            }
            eprintln!("assayd: {error:#}");
            ExitCode::from(1)
        }
        Err(Failure::Usage(message)) => {
            eprintln!("assayd: {message}");
            ExitCode::from(2)
        }
        Err(Failure::Settings(faults)) => {
            faults.iter().for_each(|fault| eprintln!("{fault}"));
            eprintln!("assayd: no valid settings");
            ExitCode::from(2)
        }
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    let overrides = Overrides { config: cli.global.config, monitors: cli.global.monitors, state: cli.global.state, log_level: cli.global.log_level };
    match cli.command {
        Command::Run => run::run(&overrides),
        Command::Validate(arguments) => validate::validate(&overrides, &arguments),
        Command::Test(arguments) => test::test(&overrides, &arguments),
        Command::Once(arguments) => once::once(&overrides, arguments),
        Command::Status(arguments) => status::status(&overrides, &arguments),
        Command::Explain(arguments) => explain::explain(&overrides, &arguments),
        Command::Next(arguments) => next::next(&overrides, &arguments),
        Command::Export(arguments) => export::export(&overrides, &arguments),
        Command::Import(arguments) => import::import(&overrides, &arguments),
        Command::Gate(arguments) => gate::gate(&overrides, arguments),
        Command::Backfill(arguments) => backfill::backfill(&overrides, arguments),
        Command::Plan(arguments) => plan::plan(&overrides, &arguments),
        Command::Simulate(arguments) => simulate::simulate(&overrides, &arguments),
        Command::Calibrate(arguments) => calibrate::calibrate(&overrides, &arguments),
        Command::Silence { action } => silence::silence(&overrides, action),
        Command::Alerts { action } => alerts::alerts(&overrides, action),
        Command::Infer(arguments) => infer::infer(&overrides, &arguments),
        Command::Models(arguments) => models::models(&overrides, &arguments),
        Command::Usage(arguments) => usage::usage(&overrides, &arguments),
        Command::Prompts { action } => prompts::prompts(&overrides, action),
        Command::Outbox { action } => outbox::outbox(&overrides, action),
        Command::Secrets { action } => secrets::secrets(&overrides, action),
        Command::Postgres { action } => postgres::postgres(&overrides, action),
        Command::Healthcheck => status::healthcheck(&overrides),
        Command::Schema { of } => {
            let schema = match of {
                SchemaOf::Monitor => crate::config::monitor_schema(),
                SchemaOf::Config => crate::config::config_schema(),
            };
            print(&format!("{schema:#}\n"))
        }
        Command::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "assayd", &mut out);
            print(&String::from_utf8_lossy(&out))
        }
        Command::Man => {
            let mut out = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut out)?;
            print(&String::from_utf8_lossy(&out))
        }
    }
}

fn settings(overrides: &Overrides) -> Result<Settings, Failure> {
    load_settings(overrides).map_err(Failure::Settings)
}

/// For commands that call nobody.
fn settings_without_keys(overrides: &Overrides) -> Result<Settings, Failure> {
    load_settings_without_keys(overrides).map_err(Failure::Settings)
}

fn monitors(settings: &Settings) -> Loaded {
    load_monitors(&settings.monitors, settings, &mut Cache::default())
}

/// The monitor of that name, or what is wrong with it.
fn monitor(settings: &Settings, name: &str) -> Result<std::sync::Arc<crate::config::MonitorSpec>, Failure> {
    let loaded = monitors(settings);
    if let Some(spec) = loaded.monitors.get(name) {
        return Ok(std::sync::Arc::clone(spec));
    }
    loaded.faults.iter().for_each(|fault| eprintln!("{fault}"));
    let hint = crate::util::text::nearest(name, loaded.monitors.keys().map(String::as_str)).map(|near| format!(", did you mean `{near}`?")).unwrap_or_default();
    Err(Failure::Usage(format!("there is no valid monitor `{}` in {}{hint}", crate::util::text::one_line(name, 64), settings.monitors.display())))
}

fn print(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// The runtime of a short command: one thread does.
fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

/// Beside a daemon, the daemon does it: one process writes.
async fn daemon_answer<T: serde::de::DeserializeOwned>(settings: &Settings, address: &str, path: &str, request: &impl serde::Serialize) -> Result<T, Failure> {
    use crate::util::{secret::ExposeSecret, text::one_line};
    let http = reqwest::Client::builder().no_proxy().build().map_err(anyhow::Error::from)?;
    let mut call = http.post(format!("http://{address}{path}")).json(request);
    if let Some(auth) = &settings.auth {
        call = call.bearer_auth(auth.token.expose_secret());
    }
    let answer = call.send().await.map_err(|error| anyhow::Error::new(error).context("asking the daemon"))?;
    let status = answer.status();
    let body = answer.bytes().await.map_err(anyhow::Error::from)?;
    if !status.is_success() {
        return Err(Failure::Error(anyhow::anyhow!("the daemon refused: {}", one_line(&String::from_utf8_lossy(&body), 300))));
    }
    Ok(serde_json::from_slice(&body).map_err(|error| anyhow::Error::new(error).context("reading the daemon's answer"))?)
}

/// A table with a header, sized to the terminal.
fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    // One rule under the header: rows stay greppable, and a narrow terminal keeps its width.
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('-').junction('-')));
    table.set_header(header.to_vec());
    table
}
