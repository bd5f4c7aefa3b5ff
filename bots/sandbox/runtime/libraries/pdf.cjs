// What `medplum.createPdf` does: pdfmake with fonts that need nothing from outside.
const PdfPrinter = require("pdfmake");

const family = (normal, bold, italics, bolditalics) => ({ normal, bold, italics, bolditalics });
const HELVETICA = family("Helvetica", "Helvetica-Bold", "Helvetica-Oblique", "Helvetica-BoldOblique");

/** The fonts every document may use. Avenir cannot be given away: Helvetica stands in for it. */
const FONTS = {
  Roboto: family("Roboto-Regular.ttf", "Roboto-Medium.ttf", "Roboto-Italic.ttf", "Roboto-MediumItalic.ttf"),
  Helvetica: HELVETICA,
  Avenir: HELVETICA,
  Times: family("Times-Roman", "Times-Bold", "Times-Italic", "Times-BoldItalic"),
  Courier: family("Courier", "Courier-Bold", "Courier-Oblique", "Courier-BoldOblique"),
  Symbol: { normal: "Symbol" },
  ZapfDingbats: { normal: "ZapfDingbats" },
};

/** The bytes of a PDF. Fonts given by address are fetched, so their host must be allowed. */
exports.createPdf = async function (docDefinition, tableLayouts, fonts) {
  const used = { ...FONTS };
  for (const [name, styles] of Object.entries(fonts ?? {})) {
    used[name] = {};
    for (const [style, source] of Object.entries(styles)) used[name][style] = await load(source);
  }
  return await new Promise((resolve, reject) => {
    const document = new PdfPrinter(used).createPdfKitDocument(docDefinition, { tableLayouts });
    const chunks = [];
    document.on("data", (chunk) => chunks.push(chunk));
    document.on("end", () => resolve(Buffer.concat(chunks)));
    document.on("error", reject);
    document.end();
  });
};

async function load(source) {
  if (typeof source !== "string" || !/^https?:/i.test(source)) return source;
  const response = await fetch(source);
  if (!response.ok) throw new Error(`A font could not be fetched: ${new URL(source).host} answered ${response.status}.`);
  return Buffer.from(await response.arrayBuffer());
}
