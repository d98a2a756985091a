/** The chart library as the build copies it beside the page. */
import uPlot from 'uplot';
export default uPlot;
