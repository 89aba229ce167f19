//! What a judge is asked: a prompt of the settings, or one that Langfuse keeps.

use std::collections::BTreeMap;

use minijinja::Value;

use crate::{
    model::{ChatTurn, PromptText},
    providers::{Message, Role},
    util::{
        template::{Template, TemplateError},
        text::one_line,
    },
};

/// A prompt with holes.
#[derive(Debug, Default)]
pub(super) struct Form {
    /// Said to the model beside what every judge is told.
    system: Vec<Template>,
    /// The first and the last are the user's.
    messages: Vec<(Role, Template)>,
}

/// A prompt without holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub system: Option<String>,
    pub messages: Vec<Message>,
}

impl Asked {
    /// All of its text, for a look at what stands in it.
    pub fn text(&self) -> String {
        self.system.iter().map(String::as_str).chain(self.messages.iter().map(|message| message.text.as_str())).collect::<Vec<_>>().join("\n")
    }
}

/// What a prompt in Langfuse may name, beside `variables`: what `extract` gives.
const NAMES: [&str; 17] = [
    "input",
    "output",
    "context",
    "expected",
    "metadata",
    "conversation",
    "tools_called",
    "expected_tools",
    "retrieved_content",
    "acceptance_criteria",
    "additional_input",
    "additional_output",
    "document_text",
    "actual_reference",
    "expected_reference",
    "judgment",
    "critique",
];

/// A prompt put into another one, which Langfuse resolves unless it cannot.
const TAG: &str = "@@@langfusePrompt:";

impl Form {
    /// A template of the settings.
    ///
    /// # Errors
    /// The syntax error.
    pub fn own(source: &str) -> Result<Self, String> {
        Ok(Self { system: Vec::new(), messages: vec![(Role::User, Template::new(source)?)] })
    }

    /// A prompt that Langfuse keeps; `variables` are expressions by the names that it uses beside assayd's own.
    ///
    /// # Errors
    /// A sentence: what in the prompt assayd cannot fill in or ask.
    pub fn kept(prompt: &PromptText, variables: &BTreeMap<String, String>) -> Result<Self, String> {
        let template = |text: &str| Template::new(&minijinja(text, variables)?).map_err(|error| format!("a variable cannot be filled in: {error}"));
        let turns = match prompt {
            PromptText::Text(text) if text.trim().is_empty() => return Err("it is empty".to_owned()),
            PromptText::Text(text) => return Ok(Self { system: Vec::new(), messages: vec![(Role::User, template(text)?)] }),
            PromptText::Chat(turns) => turns,
        };
        let mut form = Self::default();
        for ChatTurn { role, content } in turns {
            match role.as_str() {
                "system" | "developer" => form.system.push(template(content)?),
                "user" => form.messages.push((Role::User, template(content)?)),
                "assistant" => form.messages.push((Role::Assistant, template(content)?)),
                other => return Err(format!("a message has the role `{}`; a judge takes system, user and assistant", one_line(other, 40))),
            }
        }
        let ends = [form.messages.first(), form.messages.last()];
        if ends.iter().any(|end| end.is_none_or(|(role, _)| *role != Role::User)) {
            return Err("beside system messages, its first and its last message have to be the user's".to_owned());
        }
        Ok(form)
    }

    /// # Errors
    /// See [`TemplateError`].
    pub fn render(&self, context: &Value) -> Result<Asked, TemplateError> {
        let system = self.system.iter().map(|template| template.render(context)).collect::<Result<Vec<_>, _>>()?;
        let messages = self.messages.iter().map(|(role, template)| Ok(Message { role: *role, text: template.render(context)? }));
        Ok(Asked { system: (!system.is_empty()).then(|| system.join("\n\n")), messages: messages.collect::<Result<_, _>>()? })
    }
}

/// Langfuse's form of a template as ours: `{{name}}` is a variable, everything else is text, however it looks.
fn minijinja(text: &str, variables: &BTreeMap<String, String>) -> Result<String, String> {
    if let Some((_, tag)) = text.split_once(TAG) {
        let tag = tag.split_once("@@@").map_or(tag, |(tag, _)| tag);
        return Err(format!("Langfuse left a prompt inside of it unresolved: `{}`", one_line(tag, 100)));
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    // Langfuse's own scanner: from `{{` to the next `}}`; what stands there and is no name stays as it is.
    while let Some((before, (inside, after))) = rest.split_once("{{").and_then(|(before, from)| Some((before, from.split_once("}}")?))) {
        plain(before, &mut out);
        match hole(inside.trim(), variables)? {
            Some(expression) => out.push_str(&format!("{{{{ {expression} }}}}")),
            None => plain(&rest[before.len()..rest.len() - after.len()], &mut out),
        }
        rest = after;
    }
    plain(rest, &mut out);
    Ok(out)
}

/// Text in which nothing begins a hole.
fn plain(text: &str, out: &mut String) {
    for c in text.chars() {
        if c == '{' { out.push_str("{{ '{' }}") } else { out.push(c) }
    }
}

/// The expression that a name stands for; `None` where it is no name at all.
fn hole(name: &str, variables: &BTreeMap<String, String>) -> Result<Option<String>, String> {
    if let Some(expression) = variables.get(name) {
        return Ok(Some(format!("({expression})")));
    }
    let word = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'));
    let mut parts = name.split('.');
    let Some(first) = parts.next().filter(|_| name.split('.').all(word)) else { return Ok(None) };
    if !NAMES.contains(&first) {
        let name = one_line(name, 60);
        let known = NAMES.join(", ");
        return Err(format!("it names the variable `{name}`, which is none of {known}; say under `variables` what it is, such as `{name}: input`"));
    }
    Ok(Some(parts.fold(first.to_owned(), |path, part| format!("{path}['{part}']"))))
}

#[cfg(test)]
mod tests {
    use minijinja::context;
    use proptest::prelude::*;

    use super::*;

    fn text(source: &str, variables: &[(&str, &str)]) -> Result<String, String> {
        let variables = variables.iter().map(|(name, expression)| ((*name).to_owned(), (*expression).to_owned())).collect();
        let context = context! { input => "why?", output => "so.", metadata => context! { tenant => "acme" , long => context! { er => 3 } } };
        let form = Form::kept(&PromptText::Text(source.to_owned()), &variables)?;
        form.render(&context).map(|asked| asked.messages[0].text.clone()).map_err(|error| error.to_string())
    }

    #[test]
    fn names_are_filled_in_and_all_else_is_text() {
        assert_eq!(text("Q: {{input}} A: {{ output }} of {{metadata.tenant}}", &[]).unwrap(), "Q: why? A: so. of acme");
        assert_eq!(
            text(r#"As {"score": 5} or {{"a": {"b": 1}}} {% if x %} {# note #} {"#, &[]).unwrap(),
            r#"As {"score": 5} or {{"a": {"b": 1}}} {% if x %} {# note #} {"#
        );
        assert_eq!(text("{{{input}}}", &[]).unwrap(), "{{{input}}}", "Langfuse reads a name with a brace in it, and leaves it");
        assert_eq!(text("{{query}}/{{tenant}}", &[("query", "input"), ("tenant", "metadata.tenant | upper")]).unwrap(), "why?/ACME");
        assert_eq!(text("{{output}}", &[("output", "input")]).unwrap(), "why?", "the settings have the last word");
    }

    #[test]
    fn what_cannot_be_filled_in_is_told() {
        let error = |source: &str| text(source, &[]).unwrap_err();
        assert!(error("Rate {{question}}").contains("`question`") && error("Rate {{question}}").contains("question: input"));
        assert!(error("{{trace.steps.a.output}}").contains("variables"));
        assert!(error("a @@@langfusePrompt:name=b|label=production@@@ c").contains("`name=b|label=production`"));
        assert!(error(" ").contains("empty"));
        assert!(error("{{metadata.nobody}}").contains("undefined"), "a variable that one item lacks is that item's");
    }

    #[test]
    fn a_chat_keeps_its_roles() {
        let turn = |role: &str, content: &str| ChatTurn { role: role.to_owned(), content: content.to_owned() };
        let kept = |turns: &[ChatTurn]| Form::kept(&PromptText::Chat(turns.to_vec()), &BTreeMap::new());
        let form = kept(&[turn("system", "Be strict."), turn("user", "Q: {{input}}"), turn("assistant", "Yes?"), turn("user", "{{output}}")]).unwrap();
        let asked = form.render(&context! { input => "why?", output => "so." }).unwrap();
        assert_eq!(asked.system.as_deref(), Some("Be strict."));
        assert_eq!(asked.messages, [Message::user("Q: why?"), Message::assistant("Yes?"), Message::user("so.")]);
        assert!(kept(&[turn("system", "Be strict.")]).unwrap_err().contains("user's"));
        assert!(kept(&[turn("user", "a"), turn("assistant", "b")]).unwrap_err().contains("user's"));
        assert!(kept(&[turn("tool", "a")]).unwrap_err().contains("`tool`"));
    }

    proptest! {
        /// Whatever somebody writes in Langfuse: it is asked for as it stands, or told to be wrong.
        #[test]
        fn a_text_without_names_stays_as_it_is(source in "([a-z {}%#|'\"\\\\\n]|\\{\\{|\\}\\}){1,40}") {
            if !source.contains("{{") && !source.trim().is_empty() {
                let shown = text(&source, &[]).unwrap();
                prop_assert!(shown == source || format!("{shown}\n") == source, "{:?} became {:?}", source, shown);
            }
            // No panic, whatever it is.
            let _ = text(&source, &[]);
        }
    }
}
