// Images to try, each set with the labels of the models that it is for.

// The digit that a label such as "7" or "digit 7" stands for, as text; none: undefined.
const digitOf = (label) => /^(?:digit )?(\d)$/.exec(label)?.[1];

export const EXAMPLES = [
  {
    title: "Or one of these digits",
    fit: (labels) => labels.length === 10 && new Set(labels.map(digitOf)).size === 10 && labels.every(digitOf),
    source: "From the UCI set of handwritten digits by Alpaydin and Kaynak, CC BY 4.0.",
    files: [0, 2, 3, 4, 5, 6, 8, 9].map((digit) => ({
      path: `web/examples/digit-${digit}.png`,
      description: `Handwritten ${digit}`,
    })),
  },
];
