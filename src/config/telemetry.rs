//! Where traces go.

use serde::{Deserialize, Serialize};

use super::{Environment, Error};

/// What OpenTelemetry's specification calls the variables that count where the file says nothing.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const SERVICE_NAME: &str = "OTEL_SERVICE_NAME";
const DISABLED: &str = "OTEL_SDK_DISABLED";
/// Where a receiver takes traces.
const TRACES_PATH: &str = "/v1/traces";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// An OpenTelemetry collector that takes OTLP over HTTP, such as `http://collector:4318`; none: there are no traces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    /// What this service is called there.
    pub service_name: String,
    /// Of the requests that come without a decision of their own about it, how many are traced.
    pub sampled_percent: u8,
    /// Most spans that wait to be sent; more are lost.
    pub spans_max: usize,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { otlp_endpoint: None, service_name: "tollstream".to_owned(), sampled_percent: 100, spans_max: 8_192 }
    }
}

impl Telemetry {
    /// Where spans are sent, if anywhere.
    pub fn traces_url(&self) -> Option<String> {
        let base = self.otlp_endpoint.as_deref()?.trim_end_matches('/');
        Some(if base.ends_with(TRACES_PATH) { base.to_owned() } else { format!("{base}{TRACES_PATH}") })
    }

    /// Takes OpenTelemetry's own variables for what is not set otherwise; the one that turns it off wins over all.
    pub fn take_environment(&mut self, environment: &Environment) {
        let variable = |name: &str| environment.variable(name).map(str::to_owned);
        if variable(DISABLED).is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            self.otlp_endpoint = None;
            return;
        }
        if self.otlp_endpoint.is_none() {
            self.otlp_endpoint = variable(TRACES_ENDPOINT).or_else(|| variable(ENDPOINT));
        }
        if self.service_name == Self::default().service_name {
            self.service_name = variable(SERVICE_NAME).unwrap_or_else(|| self.service_name.clone());
        }
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        if let Some(endpoint) = self.otlp_endpoint.as_ref().filter(|of| reqwest::Url::parse(of).is_err()) {
            let (key, problem) = ("telemetry.otlp_endpoint", "must be a URL such as http://collector:4318");
            return Err(Error::Invalid { key, value: endpoint.clone(), problem });
        }
        if self.sampled_percent > 100 {
            let (key, problem) = ("telemetry.sampled_percent", "must be from 0 to 100");
            return Err(Error::Invalid { key, value: self.sampled_percent.to_string(), problem });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variables_of_opentelemetry_count_where_the_file_says_nothing() {
        let environment = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Environment>()
        };
        let table: [(&[(&str, &str)], Option<&str>, Option<&str>); 6] = [
            (&[], None, None),
            (&[(ENDPOINT, "http://c:4318/")], None, Some("http://c:4318/v1/traces")),
            (&[(TRACES_ENDPOINT, "http://c/v1/traces"), (ENDPOINT, "http://d")], None, Some("http://c/v1/traces")),
            (&[(ENDPOINT, "http://c:4318")], Some("http://file"), Some("http://file/v1/traces")),
            (&[(DISABLED, "true")], Some("http://file"), None),
            (&[(DISABLED, "false")], Some("http://file"), Some("http://file/v1/traces")),
        ];
        for (variables, file, expected) in table {
            let mut telemetry = Telemetry { otlp_endpoint: file.map(str::to_owned), ..Telemetry::default() };
            telemetry.take_environment(&environment(variables));
            assert_eq!(telemetry.traces_url().as_deref(), expected, "{variables:?} {file:?}");
        }
        let mut named = Telemetry::default();
        named.take_environment(&environment(&[(SERVICE_NAME, "gateway")]));
        assert_eq!(named.service_name, "gateway");
    }
}
