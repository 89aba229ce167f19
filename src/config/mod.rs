//! What the user wrote: settings of the daemon and monitors. Three steps, each with its own file: parse (`util::yaml`),
//! assemble (`load`: defaults, environment, one tree per monitor), check (`check`: every fault of every file, with its
//! place). Keys that the settings only name are looked up in between (`secrets`), so that one that is missing is a fault
//! too. Building what touches the network is `daemon::wire`'s.
//!
//! The structs are the manual: a field's doc comment gives meaning, unit and default, and `assayd schema` prints them.
//! Absent on purpose: state. Settings never change after loading and hold no counters.

mod alerts;
mod anchors;
mod check;
mod diff;
mod gateway;
mod interpolate;
mod load;
mod maintenance;
mod monitor;
mod refused;
mod routing;
mod schema;
mod secrets;
mod settings;
mod steps;
mod switches;
mod text;
mod usertests;
mod warn;

pub use anchors::{Anchor, AnchorsSpec, anchors};
pub use diff::{Change, diff};
pub use gateway::{CacheSpec, Environment, EnvironmentSpec, HookSpec, HooksSpec, KeepSpec};
pub use load::{Cache, DEFAULT_CONFIG, Loaded, Overrides, load_monitors, load_settings, load_settings_without_keys, read_settings};
pub use monitor::{
    AlertSpec, BySpec, ConfidenceScope, EvaluationSpec, EvidenceSpec, ExtractSpec, For, MetricSpec, MonitorSpec, OnMissing, Over, Rejudge, SamplingSpec,
    SourceSpec, StepPatterns, Strategy,
};
pub use routing::{Grouping, NotifyTarget, Routing};
pub use schema::{config_schema, monitor_schema};
pub use secrets::Keyring;
pub use settings::{AuthSpec, ConcurrencySpec, Digest, LogFormat, LogSpec, ProfileSpec, ProviderSpec, RetentionSpec, RetrySpec, Rotation, Settings};
pub use switches::Switches;
pub use text::faults_of_text;
pub use usertests::{Expected, UserRun, UserTest, load_tests};
