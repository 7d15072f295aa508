//! Error answers as the providers give them: status, headers and body, by provider and name. Each says where it was read;
//! figures and ids in them are made up. What a provider does not document is not here: OpenAI has no status for a time-out,
//! Ollama no limits, accounts or filters.

/// An error answer of a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Documented {
    pub provider: &'static str,
    pub name: &'static str,
    pub status: u16,
    pub headers: &'static [(&'static str, &'static str)],
    pub body: &'static str,
}

impl Documented {
    /// As an event of a stream. Anthropic's is named (docs.anthropic.com/en/api/errors), the others' are not.
    pub fn event(&self) -> String {
        let name = if self.provider == "anthropic" { "event: error\n" } else { "" };
        format!("{name}data: {}\n\n", self.body)
    }
}

/// The error of this name, written `PROVIDER/NAME`.
pub fn named(text: &str) -> Option<&'static Documented> {
    let (provider, name) = text.split_once('/')?;
    ALL.iter().find(|of| of.provider == provider && of.name == name)
}

const fn of(
    provider: &'static str,
    name: &'static str,
    status: u16,
    headers: &'static [(&'static str, &'static str)],
    body: &'static str,
) -> Documented {
    Documented { provider, name, status, headers, body }
}

pub const ALL: &[Documented] = &[
    // platform.openai.com/docs/guides/error-codes, and platform.openai.com/docs/guides/rate-limits for the headers.
    of(
        "openai",
        "rate_limit",
        429,
        &[
            ("retry-after", "2"),
            ("retry-after-ms", "1500"),
            ("x-ratelimit-limit-requests", "500"),
            ("x-ratelimit-remaining-requests", "0"),
            ("x-ratelimit-reset-requests", "1.5s"),
        ],
        r#"{"error":{"message":"Rate limit reached for gpt-4o in organization org-simulated on requests per min (RPM): Limit 500, Used 500, Requested 1. Please try again in 1.5s. Visit https://platform.openai.com/account/rate-limits to learn more.","type":"requests","param":null,"code":"rate_limit_exceeded"}}"#,
    ),
    of(
        "openai",
        "quota",
        429,
        &[],
        r#"{"error":{"message":"You exceeded your current quota, please check your plan and billing details. For more information on this error, read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors.","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#,
    ),
    of(
        "openai",
        "overloaded",
        503,
        &[],
        r#"{"error":{"message":"The engine is currently overloaded, please try again later","type":"server_error","param":null,"code":null}}"#,
    ),
    of(
        "openai",
        "server_error",
        500,
        &[],
        r#"{"error":{"message":"The server had an error while processing your request. Sorry about that!","type":"server_error","param":null,"code":null}}"#,
    ),
    of(
        "openai",
        "authentication",
        401,
        &[],
        r#"{"error":{"message":"Incorrect API key provided: sk-simul****ated. You can find your API key at https://platform.openai.com/account/api-keys.","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}"#,
    ),
    of(
        "openai",
        "permission",
        403,
        &[],
        r#"{"error":{"code":"unsupported_country_region_territory","message":"Country, region, or territory not supported","param":null,"type":"request_forbidden"}}"#,
    ),
    of(
        "openai",
        "model_not_found",
        404,
        &[],
        r#"{"error":{"message":"The model `gpt-simulated` does not exist or you do not have access to it.","type":"invalid_request_error","param":null,"code":"model_not_found"}}"#,
    ),
    // github.com/chathub-dev/chathub issue 126 shows the body as it was received.
    of(
        "openai",
        "context_too_long",
        400,
        &[],
        r#"{"error":{"message":"This model's maximum context length is 4097 tokens. However, your messages resulted in 4294 tokens. Please reduce the length of the messages.","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#,
    ),
    // learn.microsoft.com/azure/ai-services/openai/concepts/content-filter: OpenAI's models behind Azure's filter.
    of(
        "openai",
        "content_filter",
        400,
        &[],
        r#"{"error":{"message":"The response was filtered due to the prompt triggering Azure OpenAI's content management policy. Please modify your prompt and retry.","type":null,"param":"prompt","code":"content_filter","status":400,"innererror":{"code":"ResponsibleAIPolicyViolation","content_filter_result":{"violence":{"filtered":true,"severity":"medium"}}}}}"#,
    ),
    of(
        "openai",
        "bad_request",
        400,
        &[],
        r#"{"error":{"message":"Invalid value for 'temperature': must be at most 2.","type":"invalid_request_error","param":"temperature","code":null}}"#,
    ),
    // developers.openai.com/docs/guides/error-codes names type and code of the next four and shows no body; the words are its
    // descriptions. help.openai.com/en/articles/6614457 says that the type may stay insufficient_quota.
    of(
        "openai",
        "slow_down",
        429,
        &[],
        r#"{"error":{"message":"Your request rate increased faster than the service can safely handle.","type":"rate_limit_error","param":null,"code":"slow_down"}}"#,
    ),
    of(
        "openai",
        "server_is_overloaded",
        503,
        &[],
        r#"{"error":{"message":"The requested model does not have enough capacity to process your request at the moment.","type":"service_unavailable_error","param":null,"code":"server_is_overloaded"}}"#,
    ),
    of(
        "openai",
        "credit_balance",
        429,
        &[],
        r#"{"error":{"message":"Your organization has no prepaid credits remaining.","type":"insufficient_quota","param":null,"code":"credit_balance_exhausted"}}"#,
    ),
    of(
        "openai",
        "spend_limit",
        429,
        &[],
        r#"{"error":{"message":"Your organization reached its enforced monthly spend limit.","type":"insufficient_quota","param":null,"code":"organization_spend_limit_exceeded"}}"#,
    ),
    // github.com/dfinke/PowerShellAI issue 127 shows the body, github.com/all-in-aigc/aiwallpaper issue 2 the status.
    of(
        "openai",
        "billing_limit",
        400,
        &[],
        r#"{"error":{"code":"billing_hard_limit_reached","message":"Billing hard limit has been reached","param":null,"type":"invalid_request_error"}}"#,
    ),
    // github.com/openai/openai-openapi issue 11.
    of(
        "openai",
        "safety_system",
        400,
        &[],
        r#"{"error":{"code":null,"message":"Your request was rejected as a result of our safety system. Your prompt may contain text that is not allowed by our safety system.","param":null,"type":"invalid_request_error"}}"#,
    ),
    // github.com/alan-turing-institute/t0-1 issue 69.
    of(
        "openai",
        "usage_policy",
        400,
        &[],
        r#"{"error":{"message":"Invalid prompt: your prompt was flagged as potentially violating our usage policy. Please try again with a different prompt: https://platform.openai.com/docs/guides/reasoning#advice-on-prompting","type":"invalid_request_error","param":null,"code":"invalid_prompt"}}"#,
    ),
    // docs.anthropic.com/en/api/errors, and /en/api/rate-limits for the headers.
    of(
        "anthropic",
        "rate_limit",
        429,
        &[
            ("retry-after", "30"),
            ("anthropic-ratelimit-requests-limit", "50"),
            ("anthropic-ratelimit-requests-remaining", "0"),
            ("anthropic-ratelimit-requests-reset", "2026-01-01T00:00:30Z"),
        ],
        r#"{"type":"error","error":{"type":"rate_limit_error","message":"This request would exceed your organization's rate limit of 50 requests per minute."},"request_id":"req_simulated"}"#,
    ),
    of(
        "anthropic",
        "quota",
        400,
        &[],
        r#"{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits."},"request_id":"req_simulated"}"#,
    ),
    of(
        "anthropic",
        "billing",
        402,
        &[],
        r#"{"type":"error","error":{"type":"billing_error","message":"There is an issue with your billing or payment information."},"request_id":"req_simulated"}"#,
    ),
    of(
        "anthropic",
        "overloaded",
        529,
        &[],
        r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_simulated"}"#,
    ),
    of(
        "anthropic",
        "server_error",
        500,
        &[],
        r#"{"type":"error","error":{"type":"api_error","message":"Internal server error"},"request_id":"req_simulated"}"#,
    ),
    of(
        "anthropic",
        "timeout",
        504,
        &[],
        r#"{"type":"error","error":{"type":"timeout_error","message":"The request timed out while processing."},"request_id":"req_simulated"}"#,
    ),
    of(
        "anthropic",
        "authentication",
        401,
        &[],
        r#"{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"},"request_id":"req_simulated"}"#,
    ),
    of(
        "anthropic",
        "permission",
        403,
        &[],
        r#"{"type":"error","error":{"type":"permission_error","message":"Your API key does not have permission to use the specified resource."},"request_id":"req_simulated"}"#,
    ),
    of(
        "anthropic",
        "model_not_found",
        404,
        &[],
        r#"{"type":"error","error":{"type":"not_found_error","message":"model: claude-simulated"},"request_id":"req_simulated"}"#,
    ),
    of(
        "anthropic",
        "context_too_long",
        400,
        &[],
        r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 200251 tokens > 200000 maximum"},"request_id":"req_simulated"}"#,
    ),
    of(
        "anthropic",
        "request_too_large",
        413,
        &[],
        r#"{"type":"error","error":{"type":"request_too_large","message":"Request exceeds the maximum size"},"request_id":"req_simulated"}"#,
    ),
    of(
        "anthropic",
        "bad_request",
        400,
        &[],
        r#"{"type":"error","error":{"type":"invalid_request_error","message":"messages: at least one message is required"},"request_id":"req_simulated"}"#,
    ),
    // github.com/anthropics/claude-code issue 6195 shows the body as it was received.
    of(
        "anthropic",
        "content_filter",
        400,
        &[],
        r#"{"type":"error","error":{"type":"invalid_request_error","message":"Output blocked by content filtering policy"},"request_id":null}"#,
    ),
    // docs.anthropic.com/en/api/rate-limits: a limit that the account set itself, and its tier's, which has no `retry-after`.
    of(
        "anthropic",
        "usage_limit",
        400,
        &[],
        r#"{"type":"error","error":{"type":"invalid_request_error","message":"You have reached your specified API usage limits. You will regain access on 2026-02-01 at 00:00 UTC."},"request_id":"req_simulated"}"#,
    ),
    of(
        "anthropic",
        "spend_limit",
        429,
        &[],
        r#"{"type":"error","error":{"type":"rate_limit_error","message":"Your organization reached the monthly spend cap of its usage tier.","details":{"error_code":"enforced_spend_limit_reached"}},"request_id":"req_simulated"}"#,
    ),
    // ai.google.dev/gemini-api/docs/troubleshooting, and google.rpc.Status with its details (google/rpc/error_details.proto).
    of(
        "google",
        "rate_limit",
        429,
        &[],
        r#"[{"error":{"code":429,"message":"You exceeded your current quota, please check your plan and billing details.","status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaMetric":"generativelanguage.googleapis.com/generate_content_free_tier_requests","quotaId":"GenerateRequestsPerMinutePerProjectPerModel-FreeTier"}]},{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"34.5s"}]}}]"#,
    ),
    of(
        "google",
        "overloaded",
        503,
        &[],
        r#"[{"error":{"code":503,"message":"The model is overloaded. Please try again later.","status":"UNAVAILABLE"}}]"#,
    ),
    of(
        "google",
        "server_error",
        500,
        &[],
        r#"[{"error":{"code":500,"message":"An internal error has occurred. Please retry or report in https://developers.generativeai.google/guide/troubleshooting","status":"INTERNAL"}}]"#,
    ),
    of(
        "google",
        "timeout",
        504,
        &[],
        r#"[{"error":{"code":504,"message":"The request timed out. Please try again.","status":"DEADLINE_EXCEEDED"}}]"#,
    ),
    of(
        "google",
        "authentication",
        400,
        &[],
        r#"[{"error":{"code":400,"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"API_KEY_INVALID","domain":"googleapis.com","metadata":{"service":"generativelanguage.googleapis.com"}}]}}]"#,
    ),
    of(
        "google",
        "permission",
        403,
        &[],
        r#"[{"error":{"code":403,"message":"Your API key doesn't have the required permissions.","status":"PERMISSION_DENIED"}}]"#,
    ),
    of(
        "google",
        "model_not_found",
        404,
        &[],
        r#"[{"error":{"code":404,"message":"models/gemini-simulated is not found for API version v1main, or is not supported for generateContent.","status":"NOT_FOUND"}}]"#,
    ),
    of(
        "google",
        "context_too_long",
        400,
        &[],
        r#"[{"error":{"code":400,"message":"The input token count (1048600) exceeds the maximum number of tokens allowed (1048576).","status":"INVALID_ARGUMENT"}}]"#,
    ),
    of(
        "google",
        "bad_request",
        400,
        &[],
        r#"[{"error":{"code":400,"message":"Request contains an invalid argument.","status":"INVALID_ARGUMENT"}}]"#,
    ),
    // ai.google.dev/gemini-api/docs/generate-content/api-errors.
    of(
        "google",
        "billing",
        400,
        &[],
        r#"[{"error":{"code":400,"message":"Gemini API free tier is not available in your country. Please enable billing on your project in Google AI Studio.","status":"FAILED_PRECONDITION"}}]"#,
    ),
    of(
        "google",
        "credit_balance",
        402,
        &[],
        r#"[{"error":{"code":402,"message":"Your prepay credit balance is depleted.","status":"RESOURCE_EXHAUSTED"}}]"#,
    ),
    // github.com/vercel/ai issue 4235 shows the body, cloud.google.com/vertex-ai/generative-ai/docs/multimodal/
    // process-blocked-responses says that it stands in place of an answer. It is the form of Google's own API.
    of(
        "google",
        "content_filter",
        200,
        &[],
        r#"{"promptFeedback":{"blockReason":"PROHIBITED_CONTENT"},"usageMetadata":{"promptTokenCount":12559,"totalTokenCount":12559},"modelVersion":"gemini-simulated"}"#,
    ),
    // github.com/ollama/ollama: server/routes.go and server/sched.go, in OpenAI's form by openai/openai.go; llama.cpp's own
    // (pull request 15780) reaches clients of its server.
    of(
        "ollama",
        "overloaded",
        503,
        &[],
        r#"{"error":{"message":"server busy, please try again.  maximum pending requests exceeded","type":"api_error","param":null,"code":null}}"#,
    ),
    of(
        "ollama",
        "server_error",
        500,
        &[],
        r#"{"error":{"message":"llama runner process has terminated: exit status 2","type":"api_error","param":null,"code":null}}"#,
    ),
    of(
        "ollama",
        "model_not_found",
        404,
        &[],
        r#"{"error":{"message":"model \"llama-simulated\" not found, try pulling it first","type":"not_found_error","param":null,"code":null}}"#,
    ),
    of(
        "ollama",
        "context_too_long",
        400,
        &[],
        r#"{"error":{"code":400,"message":"the request exceeds the available context size. try increasing the context size or enable context shift","type":"exceed_context_size_error","n_prompt_tokens":14429,"n_ctx":8192}}"#,
    ),
    of(
        "ollama",
        "bad_request",
        400,
        &[],
        r#"{"error":{"message":"invalid message content type: <nil>","type":"invalid_request_error","param":null,"code":null}}"#,
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_is_found_by_its_name_and_is_json() {
        for error in ALL {
            let name = format!("{}/{}", error.provider, error.name);
            assert_eq!(named(&name), Some(error), "{name} is there twice");
            assert!(serde_json::from_str::<serde_json::Value>(error.body).is_ok(), "{name}");
            assert!(error.event().ends_with(&format!("data: {}\n\n", error.body)), "{name}");
        }
        assert_eq!((named("openai"), named("openai/bliss")), (None, None));
    }

    /// What a provider has no such error for is not in its list.
    #[test]
    fn the_kinds_that_routing_tells_apart_are_there() {
        const KINDS: [&str; 7] = [
            "overloaded",
            "server_error",
            "model_not_found",
            "context_too_long",
            "bad_request",
            "rate_limit",
            "authentication",
        ];
        for provider in ["openai", "anthropic", "google", "ollama"] {
            let kinds = if provider == "ollama" { &KINDS[..5] } else { &KINDS[..] };
            for kind in kinds {
                assert!(named(&format!("{provider}/{kind}")).is_some(), "{provider}/{kind}");
            }
        }
        for name in ["openai/content_filter", "anthropic/content_filter", "google/content_filter"] {
            assert!(named(name).is_some(), "{name}");
        }
    }
}
