const token = "[!#$%&'*+.^_`|~0-9A-Za-z-]+"
const quoted = '"(?:[\\t !#-\\[\\]-~]|\\\\[\\t -~])*"'

/**
 * The grammar of a media type (RFC 9110, 8.3.1), in ASCII. What it lets through can stand in a header. No two parts of it can
 * take the same character, so a text is read once.
 */
export const mediaTypePattern = `^${token}/${token}(?:[ \\t]*;[ \\t]*${token}=(?:${token}|${quoted}))*$`
