// `#imports` is what Nuxt makes for nuxt-webhook-validators; here it is the configuration that judges.mjs sets.
import { register } from "node:module";

const hook = `
export async function resolve(name, context, next) {
  if (name === "#imports") return { url: "data:text/javascript,export const useRuntimeConfig = () => globalThis.caseConfig", shortCircuit: true };
  return next(name, context);
}`;
register("data:text/javascript," + encodeURIComponent(hook));
