//! What an imported monitor needs of assayd.yaml: connections, providers, profiles.

use std::collections::BTreeMap;

use super::yaml::Map;

#[derive(Debug, Default)]
pub(super) struct Needs {
    /// Kind and name.
    connections: BTreeMap<(&'static str, String), Map>,
    /// URL by name of the postgres connections among them.
    databases: BTreeMap<String, String>,
    providers: BTreeMap<String, Map>,
    profiles: BTreeMap<String, Profile>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Profile {
    pub provider: String,
    pub model: String,
    pub rpm: Option<u64>,
}

/// Where the older tool found a database that its file does not name.
const DATABASE_URL: &str = "${DATABASE_URL}";

/// The connection that is meant where a block names none.
const DEFAULT: &str = "default";

impl Needs {
    pub(super) fn langfuse(&mut self) {
        let mut map = Map::default();
        map.set("base_url", "${LANGFUSE_HOST:-https://cloud.langfuse.com}");
        map.set("public_key", "${LANGFUSE_PUBLIC_KEY}");
        map.set("secret_key", "${LANGFUSE_SECRET_KEY}");
        self.connections.insert(("langfuse", DEFAULT.to_owned()), map);
    }

    pub(super) fn slack(&mut self) {
        let mut map = Map::default();
        map.set("token", "${SLACK_BOT_TOKEN}");
        self.connections.insert(("slack", DEFAULT.to_owned()), map);
    }

    /// The name of the connection to a database, `default` where it can be, else by its part.
    pub(super) fn postgres(&mut self, url: Option<String>, part: &str) -> String {
        let url = url.unwrap_or_else(|| DATABASE_URL.to_owned());
        let taken = self.databases.get(DEFAULT).is_some_and(|default| *default != url);
        let name = if taken { part } else { DEFAULT };
        let mut map = Map::default();
        map.set("url", url.as_str());
        self.databases.insert(name.to_owned(), url);
        self.connections.insert(("postgres", name.to_owned()), map);
        name.to_owned()
    }

    /// The name of a profile for a model of a provider.
    pub(super) fn profile(&mut self, provider: &str, model: &str, rpm: Option<u64>) -> String {
        let (name, settings) = connect(provider);
        self.providers.insert(name.clone(), settings);
        let wanted = Profile { provider: name, model: model.to_owned(), rpm };
        let stem = slug(model);
        let stem = if model.contains("${") || stem.is_empty() { "judge".to_owned() } else { stem };
        let mut names = std::iter::once(stem.clone()).chain((2..).map(|n| format!("{stem}-{n}")));
        let name = names.find(|name| self.profiles.get(name).is_none_or(|known| *known == wanted)).unwrap_or(stem);
        self.profiles.insert(name.clone(), wanted);
        name
    }

    /// A piece of assayd.yaml.
    pub(super) fn render(&self) -> String {
        let mut settings = Map::default();
        let mut connections: BTreeMap<&str, Map> = BTreeMap::new();
        for ((kind, name), map) in &self.connections {
            connections.entry(kind).or_default().set(name, map.clone());
        }
        let section = |entries: Vec<(String, Map)>| {
            let mut map = Map::default();
            entries.into_iter().for_each(|(name, entry)| map.set(&name, entry));
            map
        };
        let connections = section(connections.into_iter().map(|(kind, map)| (kind.to_owned(), map)).collect());
        let providers = section(self.providers.clone().into_iter().collect());
        let profiles = section(self.profiles.iter().map(|(name, profile)| (name.clone(), profile.render())).collect());
        for (key, map) in [("connections", connections), ("providers", providers), ("profiles", profiles)] {
            if !map.is_empty() {
                settings.set(key, map);
            }
        }
        settings.render()
    }
}

impl Profile {
    fn render(&self) -> Map {
        let mut map = Map::default();
        map.set("provider", self.provider.as_str());
        map.set("model", self.model.as_str());
        if let Some(rpm) = self.rpm {
            let mut limits = Map::default();
            limits.set("rpm", rpm);
            map.set("limits", limits);
        }
        map
    }
}

type Keys = &'static [(&'static str, &'static str)];

/// What the older tool called `llm_provider` (letters and digits, lower case), our entry of `providers:` and its keys.
const PROVIDERS: [(&[&str], &str, Keys); 6] = [
    (&["openai"], "openai", &[("api_key", "${OPENAI_API_KEY}")]),
    (&["anthropic", "claude"], "anthropic", &[("api_key", "${ANTHROPIC_API_KEY}")]),
    (&["azure", "azureopenai"], "azure", &[("base_url", "${AZURE_OPENAI_ENDPOINT}"), ("api_key", "${AZURE_OPENAI_API_KEY}")]),
    (&["ollama"], "ollama", &[("base_url", "${OLLAMA_HOST:-http://localhost:11434}")]),
    (&["huggingface"], "huggingface", &[("api_key", "${HF_TOKEN}")]),
    (&["hyperbolic"], "hyperbolic", &[("api_key", "${HYPERBOLIC_API_KEY}")]),
];

fn known(provider: &str) -> Option<(&'static str, Keys)> {
    let word: String = provider.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    PROVIDERS.iter().find(|(words, ..)| words.contains(&word.as_str())).map(|(_, name, keys)| (*name, *keys))
}

/// Whether a provider of the older tool is one of ours.
pub(super) fn is_known(provider: &str) -> bool {
    known(provider).is_some()
}

/// An entry of `providers:`. One that is none of ours is taken to speak OpenAI's protocol, as most do; its address is the
/// user's to say.
fn connect(provider: &str) -> (String, Map) {
    let mut map = Map::default();
    if let Some((name, keys)) = known(provider) {
        map.set("type", name);
        keys.iter().for_each(|(key, value)| map.set(key, *value));
        return (name.to_owned(), map);
    }
    let name = slug(provider);
    let name = if provider.contains("${") || name.is_empty() { "judge".to_owned() } else { name };
    let variable = name.to_ascii_uppercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    // A variable's name begins with no digit.
    let variable = if variable.starts_with(|c: char| c.is_ascii_digit()) { format!("_{variable}") } else { variable };
    map.set("type", "openai_compatible");
    map.set("base_url", format!("${{{variable}_BASE_URL:?its address, where it speaks the protocol of OpenAI}}"));
    map.set("api_key", format!("${{{variable}_API_KEY}}"));
    (name, map)
}

/// Lower case, and nothing but letters, digits, `.`, `_` and `-`, beginning with a letter or digit; at most 64.
pub(super) fn slug(text: &str) -> String {
    let clean: String = text.to_ascii_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' }).collect();
    clean.trim_matches(|c: char| !c.is_ascii_alphanumeric()).chars().take(64).collect()
}
