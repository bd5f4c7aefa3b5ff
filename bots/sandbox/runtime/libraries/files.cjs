// `fs` of the libraries that read data of their own.
module.exports = require("fhirbots:files");
