"""Terms of services that are asked over HTTP, known by the address."""

from distill.family._terms import READ, Terms

SERVICES = (
    Terms(
        id="openai",
        title="OpenAI Services Agreement",
        url="https://openai.com/policies/services-agreement/",
        read=READ,
        copy="The clause of the version in force since 2026-01-01, as several public documents of 2026 quote it alike.",
        outputs="no_competitors",
        clause="3.3.e",
        quote=(
            "Customer will not, and will not permit End Users to: […] (e) except for a Permitted Exception, use Output "
            "to develop artificial intelligence models that compete with OpenAI's products and services"
        ),
        conditions=("Decide, or ask, whether the student competes with what OpenAI offers.",),
        hosts=("openai.com",),
    ),
    Terms(
        id="google-gemini",
        title="Gemini API Additional Terms of Service",
        url="https://ai.google.dev/gemini-api/terms",
        read=READ,
        copy="The versions of 2024-10-31 to 2025-05-20; public documents quote that of 2026-03-23 with the same words.",
        outputs="no_competitors",
        clause="Use Restrictions",
        quote=(
            "You may not use the Services to develop models that compete with the Services (e.g., Gemini API or Google "
            "AI Studio)."
        ),
        conditions=("Decide, or ask, whether the student competes with what Google offers.",),
        hosts=("generativelanguage.googleapis.com",),
    ),
    Terms(
        id="anthropic",
        title="Anthropic Commercial Terms of Service",
        url="https://www.anthropic.com/legal/commercial-terms",
        read=READ,
        copy="The clause of the version in force since 2025-06-17, as several public documents of 2026 quote it alike.",
        outputs="no_competitors",
        clause="D.4",
        quote=(
            "Customer may not and must not attempt to (a) access the Services to build a competing product or service, "
            "including to train competing AI models or resell the Services except as expressly approved by Anthropic"
        ),
        conditions=("Decide, or ask, whether the student competes with what Anthropic offers.",),
        hosts=("anthropic.com",),
    ),
)
