// What the generated types promise to front ends; compiled, never run.
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

type Schemas = components["schemas"];
const api = createClient<paths>({ baseUrl: "" });

/** Every code has its sentence: a new one doesn't compile until it has. */
export const SENTENCES: Record<Schemas["ErrorCode"], string> = {
  ai_service_unavailable: "No answer yet.",
  authentication_unavailable: "Try again soon.",
  bad_request: "That file can't be used.",
  conflict: "Still answering.",
  forbidden: "Not yours.",
  internal_server_error: "Our fault.",
  method_not_allowed: "",
  not_found: "It's gone.",
  payload_too_large: "Too large.",
  range_not_satisfiable: "",
  rate_limit_exceeded: "Slow down.",
  service_unavailable: "Try again soon.",
  storage_unavailable: "Try again soon.",
  unauthorized: "Log in again.",
  unsupported_media_type: "",
  validation_error: "Check what you wrote.",
};

export async function answersAndErrorsAreApart(conversation: string): Promise<string> {
  const { data, error, response } = await api.POST("/api/v1/chat/conversations/{conversation_id}/messages", {
    params: { path: { conversation_id: conversation }, header: { "Idempotency-Key": "1", "X-Chat-Scenario": "down" } },
    body: { message_type: "text", content: "Hello!", media_urls: null },
  });
  if (error) {
    const where: (string | number)[] | undefined = error.details.errors?.[0]?.loc;
    const wait: number | undefined = error.details.retry_after;
    return `${response.status} ${SENTENCES[error.error]} ${where?.join(".")} ${wait} ${error.details.reason === "stopped"}`;
  }
  const role: "user" | "assistant" = data.assistant_message.role;
  // @ts-expect-error a token count may be null
  const count: number = data.assistant_message.token_count;
  return role + count + data.user_message.media_urls.length;
}

export async function whatIsWrongDoesNotCompile(conversation: string, file: Blob): Promise<void> {
  const path = { conversation_id: conversation };
  // @ts-expect-error a message has a type
  await api.POST("/api/v1/chat/conversations/{conversation_id}/messages", { params: { path }, body: { content: "Hello!" } });
  // @ts-expect-error an order is asc or desc
  await api.GET("/api/v1/chat/conversations/{conversation_id}/messages", { params: { path, query: { order: "up" } } });
  // @ts-expect-error a file is a picture or a sound
  await api.POST("/api/v1/media/upload", { body: { file, type: "video" } });
  // @ts-expect-error there is no such route
  await api.GET("/api/v1/personas");
  await api.POST("/api/v1/media/upload", { body: { file, type: "image" } });
}

/** Every event of a stream is one of three. */
export function ends(event: Schemas["DoneEvent"] | Schemas["ErrorEvent"]): string {
  return "code" in event ? event.code : (event.assistant_message?.content ?? "Stopped.");
}
