//! minijinja as assayd uses it: strict about what is missing, JSON for what is not text, a bound on work.
//!
//! A missing variable is an error and never an empty string; so is `null`, which is how a source says "there is none".
//! (`{{ x | default("") }}` is how an author says that empty is fine.)

use std::sync::LazyLock;

use minijinja::{AutoEscape, Environment, Error, ErrorKind, Expression, Output, State, UndefinedBehavior, Value, value::ValueKind};

use super::dressed::Dressed;

/// Instructions one rendering may take: some ten thousand loop rounds, about 10 ms. A prompt needs a few hundred.
const FUEL: u64 = 500_000;

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(environment);

/// In which what is missing is undefined, unequal to everything and false, instead of an error.
static LENIENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = environment();
    environment.set_undefined_behavior(UndefinedBehavior::Chainable);
    environment
});

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(format_value);
    environment
}

fn format_value(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    write_value(&mut |text| out.write_str(text).map_err(Error::from), value)
}

fn write_value(write: &mut dyn FnMut(&str) -> Result<(), Error>, value: &Value) -> Result<(), Error> {
    if let Some(dressed) = value.downcast_object_ref::<Dressed>() {
        return write(&dressed.shown());
    }
    match value.kind() {
        ValueKind::Undefined => Err(Error::new(ErrorKind::UndefinedError, "undefined value")),
        ValueKind::None => Err(Error::new(ErrorKind::UndefinedError, "the value is null")),
        ValueKind::String => write(value.as_str().unwrap_or_default()),
        ValueKind::Map | ValueKind::Seq | ValueKind::Iterable => {
            let json = serde_json::to_string(value).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
            write(&json)
        }
        _ => write(&value.to_string()),
    }
}

/// Why a template or an expression gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A variable that the template needs is not there, or null.
    #[error("{0}")]
    Missing(String),
    /// The template does not fit the data: a filter refused a value, too much work.
    #[error("{0}")]
    Invalid(String),
}

impl TemplateError {
    fn new(error: &Error, source: &str) -> Self {
        let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
        let message = format!("{detail} in `{}`", super::text::one_line(source, 120));
        if error.kind() == ErrorKind::UndefinedError { Self::Missing(message) } else { Self::Invalid(message) }
    }
}

/// A text with holes.
#[derive(Debug)]
pub struct Template {
    source: String,
    form: Form,
}

#[derive(Debug)]
enum Form {
    /// No holes at all.
    Text,
    /// Nothing but one `{{ hole }}`, as most extracts are: needs no environment of its own.
    Hole(Expression<'static, 'static>),
    Whole(Box<Environment<'static>>),
}

const NAME: &str = "template";

impl Template {
    /// # Errors
    /// The syntax error, in a sentence.
    pub fn new(source: &str) -> Result<Self, String> {
        let form = if !source.contains("{{") && !source.contains("{%") && !source.contains("{#") {
            Form::Text
        } else if let Some(hole) = only_hole(source) {
            Form::Hole(ENVIRONMENT.compile_expression_owned(hole.to_owned()).map_err(|error| describe(&error))?)
        } else {
            let mut environment = environment();
            environment.add_template_owned(NAME, source.to_owned()).map_err(|error| describe(&error))?;
            Form::Whole(Box::new(environment))
        };
        Ok(Self { source: source.to_owned(), form })
    }

    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The value of a template that is nothing but one hole, else the text.
    ///
    /// # Errors
    /// As [`Template::render`]'s.
    pub fn value(&self, context: &Value) -> Result<serde_json::Value, TemplateError> {
        let Form::Hole(expression) = &self.form else { return self.render(context).map(serde_json::Value::String) };
        let value = expression.eval(context.clone()).map_err(|error| TemplateError::new(&error, &self.source))?;
        if value.is_undefined() || value.is_none() {
            return Err(TemplateError::Missing(format!("there is nothing in `{}`", super::text::one_line(&self.source, 120))));
        }
        serde_json::to_value(&value).map_err(|error| TemplateError::Invalid(error.to_string()))
    }

    /// # Errors
    /// See [`TemplateError`]; the message shows the template, never the data.
    pub fn render(&self, context: &Value) -> Result<String, TemplateError> {
        let rendered = match &self.form {
            Form::Text => return Ok(self.source.clone()),
            Form::Hole(expression) => expression.eval(context.clone()).and_then(|value| {
                let mut out = String::new();
                write_value(
                    &mut |text| {
                        out.push_str(text);
                        Ok(())
                    },
                    &value,
                )?;
                Ok(out)
            }),
            Form::Whole(environment) => environment.get_template(NAME).and_then(|template| template.render(context.clone())),
        };
        rendered.map_err(|error| TemplateError::new(&error, &self.source))
    }
}

/// The inside of `{{ ... }}` where the source is nothing else.
fn only_hole(source: &str) -> Option<&str> {
    let inside = source.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    // A second hole, a statement, or whitespace control wants the real engine. Text around the hole does too.
    let plain = !inside.contains("{{") && !inside.contains("}}") && !inside.contains("{%") && !inside.starts_with('-') && !inside.ends_with('-');
    (plain && source.trim() == source).then_some(inside)
}

fn describe(error: &Error) -> String {
    error.detail().map_or_else(|| error.kind().to_string(), str::to_owned)
}

/// A condition or a figure: `trace.metadata.tenant != "test"`.
#[derive(Debug)]
pub struct Expr {
    source: String,
    expression: Expression<'static, 'static>,
}

impl Expr {
    /// # Errors
    /// The syntax error, in a sentence.
    pub fn new(source: &str) -> Result<Self, String> {
        let expression = ENVIRONMENT.compile_expression_owned(source.to_owned()).map_err(|error| describe(&error))?;
        Ok(Self { source: source.to_owned(), expression })
    }

    /// For conditions over data that may lack a field: `trace.metadata.tenant != "test"` is true where there is no tenant.
    ///
    /// # Errors
    /// The syntax error, in a sentence.
    pub fn lenient(source: &str) -> Result<Self, String> {
        let expression = LENIENT.compile_expression_owned(source.to_owned()).map_err(|error| describe(&error))?;
        Ok(Self { source: source.to_owned(), expression })
    }

    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// # Errors
    /// See [`TemplateError`].
    pub fn eval(&self, context: &Value) -> Result<Value, TemplateError> {
        self.expression.eval(context.clone()).map_err(|error| TemplateError::new(&error, &self.source))
    }

    /// The value's truth; undefined and null are false, as in a template's `if`.
    ///
    /// # Errors
    /// See [`TemplateError`].
    pub fn is_true(&self, context: &Value) -> Result<bool, TemplateError> {
        Ok(self.eval(context)?.is_true())
    }
}

#[cfg(test)]
mod tests {
    use minijinja::context;

    use super::*;

    fn render(source: &str) -> Result<String, TemplateError> {
        let context = context! { trace => context! { input => "hi", output => (), messages => vec![context! { role => "user" }], n => 3 } };
        Template::new(source).unwrap().render(&context)
    }

    #[test]
    fn text_stays_text_and_the_rest_becomes_json() {
        assert_eq!(render("{{ trace.input }}").unwrap(), "hi");
        assert_eq!(render("<{{ trace.messages }}|{{ trace.n }}>").unwrap(), r#"<[{"role":"user"}]|3>"#);
        assert_eq!(render("{{ trace.messages }}").unwrap(), r#"[{"role":"user"}]"#);
        assert_eq!(render("no holes").unwrap(), "no holes");
    }

    #[test]
    fn what_is_missing_or_null_is_an_error_and_never_empty() {
        for source in ["{{ trace.context }}", "a {{ trace.context }} b", "{{ trace.output }}", "a {{ trace.output }}", "{{ trace.a.b }}"] {
            assert!(matches!(render(source), Err(TemplateError::Missing(_))), "{source}: {:?}", render(source));
        }
        assert_eq!(render("{{ trace.context | default('') }}").unwrap(), "");
    }

    #[test]
    fn a_lenient_condition_takes_what_is_missing_for_undefined() {
        let context = context! { trace => context! { input => "hi" } };
        for (source, want) in
            [("trace.metadata.tenant != 'test'", true), ("trace.metadata.tenant == 'test'", false), ("trace.a.b.c", false), ("trace.input == 'hi'", true)]
        {
            assert_eq!(Expr::lenient(source).unwrap().is_true(&context), Ok(want), "{source}");
        }
    }

    #[test]
    fn a_runaway_loop_is_stopped() {
        assert!(matches!(render("{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}"), Err(TemplateError::Invalid(_))));
    }

    #[test]
    fn a_syntax_error_is_told_when_the_template_is_made() {
        assert!(Template::new("{{ trace. }}").is_err());
        assert!(Template::new("{% if %}").is_err());
        assert!(Expr::new("trace.x ==").is_err());
    }
}
