//! Names of attributes. Most are OpenTelemetry's semantic conventions: general, HTTP, messaging with Kafka, and those of generative AI,
//! which its crate of names no longer has.

pub const ERROR_TYPE: &str = "error.type";
pub const GEN_AI_OPERATION_NAME: &str = "gen_ai.operation.name";
pub const GEN_AI_PROVIDER_NAME: &str = "gen_ai.provider.name";
pub const GEN_AI_REQUEST_MAX_TOKENS: &str = "gen_ai.request.max_tokens";
pub const GEN_AI_REQUEST_MODEL: &str = "gen_ai.request.model";
pub const GEN_AI_RESPONSE_FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
pub const GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK: &str = "gen_ai.response.time_to_first_chunk";
pub const GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";
pub const GEN_AI_USAGE_INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
pub const GEN_AI_USAGE_OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
pub const GEN_AI_USAGE_REASONING_OUTPUT_TOKENS: &str = "gen_ai.usage.reasoning.output_tokens";
pub const HTTP_REQUEST_METHOD: &str = "http.request.method";
pub const HTTP_RESPONSE_STATUS_CODE: &str = "http.response.status_code";
pub const HTTP_ROUTE: &str = "http.route";
pub const MESSAGING_CONSUMER_GROUP_NAME: &str = "messaging.consumer.group.name";
pub const MESSAGING_DESTINATION_NAME: &str = "messaging.destination.name";
pub const MESSAGING_DESTINATION_PARTITION_ID: &str = "messaging.destination.partition.id";
pub const MESSAGING_KAFKA_OFFSET: &str = "messaging.kafka.offset";
pub const MESSAGING_OPERATION_NAME: &str = "messaging.operation.name";
pub const MESSAGING_OPERATION_TYPE: &str = "messaging.operation.type";
pub const MESSAGING_SYSTEM: &str = "messaging.system";
pub const SERVER_ADDRESS: &str = "server.address";
pub const SERVER_PORT: &str = "server.port";

/// Our own.
pub const REQUEST_ID: &str = "tollstream.request.id";
pub const ORGANIZATION_ID: &str = "tollstream.organization.id";
pub const DEPLOYMENT: &str = "tollstream.deployment";
pub const ATTEMPT: &str = "tollstream.attempt";
pub const SIMULATED: &str = "tollstream.simulated";
pub const SOURCE: &str = "tollstream.source";
pub const TAKEN_OVER: &str = "tollstream.taken_over";
