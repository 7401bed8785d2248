// Swagger UI on this server's own OpenAPI document.

const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", colour);
colour();

const here = new URL(".", document.baseURI);
const answer = await fetch(new URL("openapi.json", here));
const spec = await answer.json();
// Paths are relative to where this page lies, whatever prefix a proxy gives it.
spec.servers = [{ url: here.href.replace(/\/$/, "") }];

window.SwaggerUIBundle({
  spec,
  dom_id: "#swagger-ui",
  deepLinking: true,
  // Its default sends the address of this document to a public validator.
  validatorUrl: null,
  presets: [window.SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
});
